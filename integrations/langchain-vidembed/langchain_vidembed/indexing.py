"""`index_videos`: LangChain's indexing, which leaves out videos that fail instead of ending at the first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.indexing import RecordManager, index
from langchain_core.vectorstores import VectorStore

from langchain_vidembed.documents import document_key
from langchain_vidembed.embeddings import VideoEmbeddings

logger = logging.getLogger(__name__)


@dataclass
class IndexingReport:
    """What a run of `index_videos` did.

    Attributes:
        added: Documents that were embedded and stored.
        unchanged: Documents that were stored before, and are as they were.
        deleted: Documents that were removed: earlier versions of files, or files that are gone.
        skipped: Text of the documents (their URIs) and names of the files that were left out, with the reason.
    """

    added: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: dict[str, Exception] = field(default_factory=dict)


def index_videos(
    loader: BaseLoader | Iterable[Document],
    record_manager: RecordManager,
    vectorstore: VectorStore,
    *,
    cleanup: Literal["scoped_full", "incremental", "full"] | None = "scoped_full",
    batch_size: int = 32,
) -> IndexingReport:
    """Bring a vector store up to date with `langchain_core.indexing.index`.

    Only what is new or changed is embedded. If the store's `VideoEmbeddings` have ``on_error="skip"``, documents that
    cannot be embedded are left out and reported, and all others are stored; earlier segments of such a file are removed
    with ``cleanup="full"``, and stay otherwise.

    Args:
        loader: As a rule a `VideoLoader`.
        record_manager: What remembers what is stored; keep it as long as the store.
        vectorstore: With `VideoEmbeddings`.
        cleanup: Which documents of earlier runs are deleted. "scoped_full": those that a file of this run no longer
            has. "incremental": the same after each batch, at the cost of embedding anew the segments of a file that do
            not fit into one batch. "full": all that are not in this run, so it must be about everything. None: none.
        batch_size: Documents that are stored at once.

    Raises:
        ValueError: The store has no `VideoEmbeddings`.
        VideoError: A video cannot be read, with ``on_error="raise"``.
    """
    embeddings = vectorstore.embeddings
    if not isinstance(embeddings, VideoEmbeddings):
        raise ValueError(f"vectorstore: its embeddings are {type(embeddings).__name__}; expected VideoEmbeddings")  # noqa: TRY004
    report = IndexingReport()
    documents = iter(loader.lazy_load() if isinstance(loader, BaseLoader) else loader)
    if embeddings.on_error == "skip":
        documents = _embeddable(documents, embeddings, record_manager, report, batch_size)
    result = index(
        documents,
        record_manager,
        vectorstore,
        cleanup=cleanup,
        source_id_key="source",
        key_encoder=document_key,
        batch_size=batch_size,
    )
    report.added = result["num_added"]
    report.unchanged = result["num_skipped"]
    report.deleted = result["num_deleted"]
    report.skipped.update(getattr(loader, "skipped", {}))
    return report


def _embeddable(
    documents: Iterator[Document],
    embeddings: VideoEmbeddings,
    record_manager: RecordManager,
    report: IndexingReport,
    batch_size: int,
) -> Iterator[Document]:
    """Yield the documents that are stored or can be, batch by batch, as `index` takes them."""
    while batch := list(islice(documents, batch_size)):
        stored = record_manager.exists([document_key(document) for document in batch])
        new = [document.page_content for document, is_stored in zip(batch, stored, strict=True) if not is_stored]
        failed = embeddings.embed_ahead(new)
        for uri, error in failed.items():
            logger.warning("skipped %s: %s", uri, error)
        report.skipped.update(failed)
        yield from (document for document in batch if document.page_content not in failed)
