"""From a folder of .mp4 files to answers with time ranges, in LangChain.

    pip install "langchain-vidembed[qdrant]"
    python docs/examples/langchain_videos.py [FOLDER] [QUESTION ...]

Without a folder, four videos of three scenes each are drawn, and the bundled model searches them. For your own videos,
put the name of a real model into CONFIG.
"""

# %% The configuration: everything that a retriever needs, as plain values. It could be a YAML file as well.
# ruff: noqa: T201 - an example prints
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from langchain_core.indexing import InMemoryRecordManager
from langchain_core.runnables import RunnableLambda
from langchain_vidembed import VideoLoader, VideoRetriever, index_videos

from vidembed.shapes import write_videos

SEGMENT_S = 4.0
CONFIG = {
    "store": {"kind": "qdrant", "collection": "videos"},  # with "path", it is kept on disk
    "model": {"model": "vidembed/shapes", "on_error": "skip"},
    "k": 3,
    "fetch_k": 12,
    "rerank": True,
}


# %% A folder becomes an index, and a question becomes places in videos.
def main(arguments: list[str]) -> dict[str, list[tuple[str, float, float, float]]]:
    """Index a folder and answer questions; return file, start, end and probability of each answer."""
    with tempfile.TemporaryDirectory() as drawn:
        folder, questions = (Path(arguments[0]), arguments[1:]) if arguments else (Path(drawn), [])
        if not arguments:
            questions = [record.summary for record in write_videos(folder, 4)[0][1]]  # of the first video

        retriever = VideoRetriever.from_config(CONFIG)
        records = InMemoryRecordManager("videos")  # with a store on disk, one that is kept too
        records.create_schema()
        loader = VideoLoader(folder, segment_s=SEGMENT_S, on_error="skip")
        report = index_videos(loader, records, retriever.vectorstore)
        print(f"{report.added} segments indexed, {len(report.skipped)} skipped")

        places = retriever | RunnableLambda(
            lambda documents: [
                (
                    Path(document.metadata["source"]).name,
                    document.metadata["start_s"],
                    document.metadata["end_s"],
                    document.metadata["relevance_score"],
                )
                for document in documents
            ]
        )
        answers = dict(zip(questions, places.batch(questions), strict=True))
        for question, found in answers.items():
            print(question)
            for name, start, end, probability in found:
                print(f"  {probability:6.1%}  {name}  {start:g}-{end:g} s")
        return answers


if __name__ == "__main__":
    main(sys.argv[1:])
