"""Checks installed wheels, away from the repository: `tools.release` runs it in an environment of its own.

The adapters import beside their frameworks without torch, come from the environment, and give the core's vectors.
"""

# ruff: noqa: PLC0415, T201 - a script

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Stop with a message where something is not as it should be."""
    import langchain_core
    import langchain_vidembed
    import llama_index.core
    from llama_index.embeddings import vidembed as llama_embeddings
    from llama_index.postprocessor import vidembed_rerank
    from llama_index.readers import vidembed as llama_readers

    for module in (
        langchain_core,
        langchain_vidembed,
        llama_index.core,
        llama_embeddings,
        llama_readers,
        vidembed_rerank,
    ):
        file = Path(str(module.__file__)).resolve()
        if Path(sys.prefix).resolve() not in file.parents:
            sys.exit(f"{module.__name__} comes from {file}, which is outside of {sys.prefix}")
    if "torch" in sys.modules:
        sys.exit("importing the adapters imported torch")

    from vidembed import VideoEncoder

    text = "a red square moves down"
    vectors = [
        VideoEncoder("vidembed/shapes").encode({"text": text}).tolist(),
        llama_embeddings.VideoEmbedding("vidembed/shapes").get_text_embedding(text),
        langchain_vidembed.VideoEmbeddings(model="vidembed/shapes").embed_documents([text])[0],
    ]
    if not vectors[0] == vectors[1] == vectors[2]:
        sys.exit("the adapters give other vectors than the encoder")
    print("the wheels are fine")


if __name__ == "__main__":
    main()
