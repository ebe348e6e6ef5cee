"""The method's findings, measured on the embedded world, and the bundled models made of its MLLM.

Scripts that stand above everything else in the package: ``python -m vidembed.reproduce.rerank`` and others.
"""
