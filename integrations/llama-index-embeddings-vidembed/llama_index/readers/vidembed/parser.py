"""`VideoNodeParser`: a video becomes timed nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from llama_index.core.bridge.pydantic import ConfigDict, Field, model_validator
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, Document, MetadataMode, Node, NodeRelationship, TextNode
from llama_index.core.utils import get_tqdm_iterable

from llama_index.embeddings.vidembed.inputs import Gate, node_name
from llama_index.readers.vidembed.nodes import CAPTIONS, captions_of, video_fields
from vidembed.adapters import OnError, stable_id
from vidembed.captions import CaptionMatches
from vidembed.errors import NotAVideoError
from vidembed.uri import VideoRef, content_fingerprint, segment_times
from vidembed.video import VideoError
from vidembed.video.segments import lay_out

logger = logging.getLogger(__name__)

_OF_FILE: Final = (CAPTIONS, "caption")


class VideoNodeParser(Gate, NodeParser):
    """Cuts videos into nodes by time, without decoding them.

    A node is a `TextNode` that names its part of the video in its text, a URI, and in the metadata: ``kind`` (always
    ``"video"``), ``start_s``, ``end_s``, ``duration_s`` (seconds), ``video_uri`` and ``content_fingerprint``. Its
    source is the document, so a pipeline that upserts removes the nodes of a document that changed; its id is made of
    both. A node has ``caption`` if its document, read with captions, has one of the same times. Documents that are no
    videos pass as they are.

    Args:
        segment_s: Length of a node, seconds; the last is moved back to end with the video. Default the whole video.
        overlap_s: What a node shares with the next, seconds. Default 0.
        on_error: "raise" at a video whose length is not in its metadata and that cannot be read, or "skip" to log it
            and go on.
        **fields: Those of `Gate` (``allowed_schemes``, ``root``) and of `NodeParser`.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    segment_s: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Length of a node, seconds.")
    overlap_s: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="What neighbours share, seconds.")
    on_error: OnError = Field(default="raise", description="What happens if a video cannot be read.")

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.segment_s is None and self.overlap_s:
            raise ValueError(f"overlap_s={self.overlap_s}: it needs segment_s; give both")
        if self.segment_s is not None:
            segment_times(self.segment_s, self.segment_s, self.overlap_s)  # raises if they do not fit
        return self

    @classmethod
    def class_name(cls) -> str:
        """Name that this is saved under."""
        return "VideoNodeParser"

    def _parse_nodes(
        self,
        nodes: Sequence[BaseNode],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ARG002 - indexes hand on what they were made with
    ) -> list[BaseNode]:
        parsed: list[BaseNode] = []
        matches = CaptionMatches()
        for node in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            try:
                parsed += self._cut(node, matches)
            except (VideoError, OSError) as error:
                if self.on_error == "raise":
                    raise
                logger.warning("skipped %s: %s", node_name(node), error)
        matches.log()
        return parsed

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress, **kwargs)

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:  # noqa: ARG002
        return super()._postprocess_parsed_nodes(nodes, {})  # positions in the document's text mean nothing here

    def _cut(self, node: BaseNode, matches: CaptionMatches) -> Iterable[BaseNode]:
        text = node.get_content(MetadataMode.NONE)
        if (ref := self.video_in(text)) is not None:
            return list(self._segments(node, ref, matches))
        if isinstance(node, Node) and node.video_resource is not None and not text.strip():
            raise NotAVideoError(
                f"{node_name(node)} has a video_resource and no text, so the cache of a pipeline treats all such "
                f"nodes as one. Make documents with VideoReader, which writes the video URI."
            )
        return [node]

    def _segments(self, node: BaseNode, ref: VideoRef, matches: CaptionMatches) -> Iterator[BaseNode]:
        first, duration = node.metadata.get("start_s"), node.metadata.get("duration_s")
        fingerprint = node.metadata.get("content_fingerprint")
        if not isinstance(duration, (int, float)) or not isinstance(first, (int, float)):
            layout = lay_out(ref.source, None, allow_url=self.wants_urls)
            first, duration = layout.segments[0][0], round(layout.duration, 6)
        if fingerprint is None and not isinstance(ref.source, str):
            fingerprint = content_fingerprint(ref.source)
        source = node.source_node or node.as_related_node_info()
        metadata, captions = node.metadata, captions_of(node)
        if captions:  # all of the file's, of which a node holds its own
            metadata, kept = (
                {k: v for k, v in one.items() if k not in _OF_FILE} for one in (metadata, source.metadata)
            )
            source = source.model_copy(update={"metadata": kept})
        for start, end in self._times(replace(ref, start=max(ref.start, first)), duration):
            whole = self.segment_s is None and ref.end is None
            part = replace(ref, start=ref.start if whole else start, end=None if whole else end)
            fields = video_fields(
                part,
                start=start,
                end=end,
                duration=duration,
                fingerprint=fingerprint,
                metadata=metadata if self.include_metadata else {},
                caption=matches.at(captions, start, end),
            )
            for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"):
                fields[name] = list(dict.fromkeys([*getattr(node, name), *fields[name]]))
            yield TextNode(
                id_=stable_id(source.node_id, part.uri), relationships={NodeRelationship.SOURCE: source}, **fields
            )

    def _times(self, ref: VideoRef, duration: float) -> list[tuple[float, float]]:
        """Windows of the video, or of the part of it that `ref` names, seconds."""
        end = duration if ref.end is None else min(ref.end, duration)
        if self.segment_s is None or end <= ref.start:  # what lies past the end is for embedding to refuse
            return [(ref.start, end if ref.end is None else ref.end)]
        windows = segment_times(end - ref.start, self.segment_s, self.overlap_s)
        return [(round(ref.start + start, 6), round(ref.start + stop, 6)) for start, stop in windows]
