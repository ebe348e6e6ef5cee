"""From what a user passes to what the model runs on: telling inputs apart, decoding ahead, batching by tokens."""
