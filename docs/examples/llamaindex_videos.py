"""From a folder of .mp4 files to answers with time ranges, in LlamaIndex.

    pip install "llama-index-embeddings-vidembed[qdrant]"
    python docs/examples/llamaindex_videos.py [FOLDER] [QUESTION ...]

Without a folder, four videos of three scenes each are drawn, and the bundled model searches them. For your own videos,
put the name of a real model into MODEL.
"""

# %% What is needed.
# ruff: noqa: T201 - an example prints
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from vidembed.shapes import write_videos
from vidembed.uri import parse_video_uri

MODEL = "vidembed/shapes"
SEGMENT_S = 4.0


# %% A folder becomes an index. With both stores kept, the next run embeds only what changed.
def build(folder: Path, embedding: VideoEmbedding) -> VectorStoreIndex:
    """Index the videos of a folder; what cannot be read is logged and left out."""
    store = QdrantVectorStore(client=QdrantClient(":memory:"), collection_name="videos")  # with path=, kept on disk
    pipeline = IngestionPipeline(
        transformations=[VideoNodeParser(segment_s=SEGMENT_S), embedding],
        docstore=SimpleDocumentStore(),  # which remembers what is stored: pipeline.persist() keeps it
        vector_store=store,
    )
    nodes = pipeline.run(documents=VideoReader(on_error="skip").load_data(folder))
    print(f"{sum(node.embedding is not None for node in nodes)} segments indexed")
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


# %% A question becomes places in videos.
def main(arguments: list[str]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Index a folder and answer questions; return file, start, end and probability of each answer."""
    with tempfile.TemporaryDirectory() as drawn:
        folder, questions = (Path(arguments[0]), arguments[1:]) if arguments else (Path(drawn), [])
        if not arguments:
            questions = [record.summary for record in write_videos(folder, 4)[0][1]]  # of the first video

        embedding = VideoEmbedding(MODEL, on_error="skip")
        retriever = build(folder, embedding).as_retriever(similarity_top_k=12)
        rerank = VideoRerank.from_embedding(embedding, top_n=3)
        answers = {}
        for question in questions:
            found = rerank.postprocess_nodes(retriever.retrieve(question), query_str=question)
            answers[question] = [
                (
                    Path(parse_video_uri(one.text).source).name,
                    one.node.metadata["start_s"],
                    one.node.metadata["end_s"],
                    one.score,
                )
                for one in found
            ]
            print(question)
            for name, start, end, probability in answers[question]:
                print(f"  {probability:6.1%}  {name}  {start:g}-{end:g} s")
        return answers


if __name__ == "__main__":
    main(sys.argv[1:])
