"""What one client, and all of them together, may ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from vidembed.video.pool import MIN_MEMORY_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests; above one, the answer is an error that names it. All must be positive.

    Attributes:
        max_items: Inputs of one embeddings request: as many as OpenAI takes. They are run in batches.
        max_videos: How many of them may be videos. Each is decoded.
        max_chars: Characters of one text: what `vidembed.index.retrieval.search` takes too.
        max_documents: Documents of one rerank request. Each is decoded and asked about.
        max_k: Hits of one search.
        max_rerank: Hits of one search that the reranker is asked about.
        max_body_bytes: Bytes of a JSON body.
        max_upload_bytes: Bytes of an uploaded video.
        max_uploads: Uploads at once; each takes its bytes on the disk twice while it is read.
        max_requests: Requests at once that need the model.
        max_queue: Inputs that wait for the model, at least `max_items`.
        batch_items: Most inputs of a batch; a longer request is run in parts.
        batch_wait_ms: How long a batch waits for other requests, milliseconds.
        decode_workers: Processes that decode videos.
        decode_timeout_s: How long a process may work on one video, seconds; then it is killed and replaced.
        decode_memory_bytes: Address space of a process, at least 512 MiB.
        timeout_s: How long a request waits for its answer, seconds.
        read_timeout_s: How long the server waits for the next piece of a body, seconds.
    """

    max_items: int = 2048
    max_videos: int = 64
    max_chars: int = 10_000
    max_documents: int = 64
    max_k: int = 100
    max_rerank: int = 50
    max_body_bytes: int = 4 * 2**20
    max_upload_bytes: int = 256 * 2**20
    max_uploads: int = 4
    max_requests: int = 128
    max_queue: int = 8192
    batch_items: int = 32
    batch_wait_ms: float = 5.0
    decode_workers: int = 2
    decode_timeout_s: float = 30.0
    decode_memory_bytes: int = 4 * 2**30
    timeout_s: float = 60.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: One is not a positive finite number, the queue could never take the longest request, or a
                decoder could not start in its memory.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}: got {value!r}; a positive number is needed")
        if self.max_queue < self.max_items:
            raise ValueError(f"max_queue: got {self.max_queue}; at least max_items={self.max_items} is needed")
        if self.decode_memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"decode_memory_bytes: got {self.decode_memory_bytes}; at least {MIN_MEMORY_BYTES} are needed"
            )
