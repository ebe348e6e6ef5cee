"""From pairs to answers of the head: pairs grouped by video, one prefill each, visual tokens kept, modes and depth."""
