"""How the small MLLM of `vidembed.shapes` was trained, measured and described.

`python -m tools.shapes.train --out DIR` trains one, `python -m tools.shapes.evaluate --model DIR` measures it.
"""
