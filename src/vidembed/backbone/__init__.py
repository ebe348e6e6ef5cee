"""A multimodal language model becomes parts: loading, decoder access, cutting, prompts."""
