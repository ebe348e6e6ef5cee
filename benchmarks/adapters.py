"""Reranking in both adapters on the demo's clips: ``python -m benchmarks.adapters [--out FILE]``.

Recall@1 of a vector store alone, of `VideoRerank` with the head alone, and of `VideoRerank` as it comes, which fuses
both, through the frameworks' own classes, for four kinds of queries about each clip. The bundled reranker was
calibrated on other clips. It exits with 1 if the fused ranking is below either of the two in any of these.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_vidembed import VideoEmbeddings, VideoLoader, VideoRetriever
from langchain_vidembed import VideoRerank as LangChainRerank
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import QueryBundle
from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoRerank as LlamaIndexRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader
from tools.shapes.scores import FITTED_ON, is_true

from vidembed import VideoEncoder, VideoReranker, VisualTokenCache
from vidembed.shapes import write_clips
from vidembed.shapes.clips import ClipRecord
from vidembed.uri import parse_video_uri

CLIPS: Final = 60
K: Final = 10
COLUMNS: Final = {"first stage": None, "head alone": False, "fused": True}
"""How hits are ordered, with the option ``fuse`` of `VideoRerank`; None for the store's own order."""

Search = Callable[[str, bool | None], list[str]]
"""URIs of the hits of a query, best first."""


def langchain(folder: Path, encoder: VideoEncoder, reranker: VideoReranker) -> Search:
    """Search a folder through LangChain's classes."""
    embeddings = VideoEmbeddings(encoder=encoder)
    store = InMemoryVectorStore(embeddings)
    store.add_documents(VideoLoader(folder).load())
    retrievers = {None: VideoRetriever(vectorstore=store, k=K)}
    for fuse in (False, True):
        rerank = LangChainRerank(reranker=reranker, fuse=None if fuse else False)
        retrievers[fuse] = VideoRetriever(vectorstore=store, reranker=rerank, k=K, fetch_k=K)
    return lambda query, fuse: [document.page_content for document in retrievers[fuse].invoke(query)]


def llama_index(folder: Path, encoder: VideoEncoder, reranker: VideoReranker) -> Search:
    """Search a folder through LlamaIndex's classes."""
    nodes = VideoNodeParser()(VideoReader().load_data(folder))
    index = VectorStoreIndex(nodes, embed_model=VideoEmbedding(encoder=encoder))
    retriever = index.as_retriever(similarity_top_k=K)
    rerankers = {fuse: LlamaIndexRerank(reranker=reranker, fuse=None if fuse else False) for fuse in (False, True)}

    def search(query: str, fuse: bool | None) -> list[str]:
        found = retriever.retrieve(query)
        if fuse is not None:
            found = rerankers[fuse].postprocess_nodes(found, QueryBundle(query))
        return [one.node.metadata["video_uri"] for one in found]

    return search


def recall_at_1(search: Search, kind: str, records: Sequence[ClipRecord], fuse: bool | None) -> float:
    """Percent of a kind of queries whose first hit is a clip that they are true of."""
    by_name = {record.name: record for record in records}
    right = 0
    for record in records:
        ref = parse_video_uri(search(FITTED_ON[kind](record), fuse)[0])
        assert ref is not None
        right += is_true(kind, record, by_name[Path(ref.source).stem])
    return round(100 * right / len(records), 1)


def measure(clips: int = CLIPS) -> dict[str, Any]:
    """Recall@1 in percent, by framework, kind of query and column."""
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu", visual_cache=VisualTokenCache())
    result: dict[str, Any] = {"clips": clips, "k": K, "seed": 0}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        records = [record for _, record in write_clips(folder, clips, "test", 0)]
        (folder / "captions.jsonl").unlink()
        for name, make in (("langchain", langchain), ("llama_index", llama_index)):
            search = make(folder, encoder, reranker)
            result[name] = {
                kind: {column: recall_at_1(search, kind, records, fuse) for column, fuse in COLUMNS.items()}
                for kind in FITTED_ON
            }
    return result


def below(result: dict[str, Any]) -> list[str]:
    """Where the fused ranking is below the first stage or the head alone."""
    return [
        f"{name}, {kind}"
        for name in ("langchain", "llama_index")
        for kind, row in result[name].items()
        if row["fused"] < max(row["first stage"], row["head alone"])
    ]


def as_text(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"R@1 in percent, {result['clips']} clips, K = {result['k']}",
        "",
        f"| framework | queries | {' | '.join(COLUMNS)} |",
        "| --- " * (2 + len(COLUMNS)) + "|",
    ]
    for name in ("langchain", "llama_index"):
        for kind, row in result[name].items():
            lines.append(f"| {name} | {kind} | {' | '.join(f'{row[column]:.1f}' for column in COLUMNS)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    result = measure(options.clips)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(as_text(result))
    if worse := below(result):
        sys.exit(f"Fused is below the first stage or the head alone: {'; '.join(worse)}.")


if __name__ == "__main__":
    main()
