"""How the models of `vidembed.shapes` were made and measured; each command is run as ``python -m tools.shapes.NAME``.

- `train` trains the small MLLM and writes its card, `evaluate` measures it.
- `align` aligns it with pairs of texts, and measures it before and after.
- `rerank` measures what reranking with it is worth.
- `package` makes the bundled embedder, reranker and adapter of it.
"""
