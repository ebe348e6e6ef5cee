"""`VideoClips`: what was found is cut out, for a language model that watches it."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import Any

import av
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MediaResource, MetadataMode, Node, NodeWithScore, QueryBundle
from vidembed.video import Sampling, load_video

from llama_index.embeddings.vidembed.inputs import Gate

CRF = "23"  # the default of the encoder


class VideoClips(Gate, BaseNodePostprocessor):
    """Shows a multimodal model the part of the video that a node is about.

    Of a text node with a video URI, LlamaIndex sends a model the words; of a ``video_resource``, the whole file. This
    returns new nodes whose ``video_resource`` holds the bytes of an H.264 file of that part alone, without
    sound. Nodes that name no video in their text pass as they are. Let it be the last of the postprocessors: bytes are
    not stored, and the times of the metadata still count from the beginning of the file.

    Args:
        fps: Frames a second, over 0. Default 4.
        max_frames: Most frames; a longer part has fewer a second. Default 240.
        max_pixels: Largest area of a frame; larger ones are scaled down. Default 640 x 360.
        **fields: ``callback_manager``, and those of `Gate`: ``allowed_schemes``, ``root``.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    fps: float = Field(default=4.0, gt=0, allow_inf_nan=False, description="Frames a second.")
    max_frames: int = Field(default=240, gt=0, description="Most frames.")
    max_pixels: int = Field(default=640 * 360, ge=256, description="Largest area of a frame, pixels.")

    @classmethod
    def class_name(cls) -> str:
        """Name that this is saved under."""
        return "VideoClips"

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,  # noqa: ARG002 - what is shown does not depend on it
    ) -> list[NodeWithScore]:
        return [NodeWithScore(node=self._clipped(found.node), score=found.score) for found in nodes]

    def _clipped(self, node: BaseNode) -> BaseNode:
        ref = self.video_in(node.get_content(MetadataMode.NONE))
        if ref is None:
            return node
        sampling = Sampling(self.fps, self.max_frames, max_pixels=self.max_pixels)
        clip = load_video(ref.segment(), sampling, allow_url=self.wants_urls)
        video = MediaResource(data=_encoded(clip.frames, clip.duration), mimetype="video/mp4")
        return Node(**{name: getattr(node, name) for name in _SHARED}, text_resource=_text(node), video_resource=video)


_SHARED = (
    "id_",
    "embedding",
    "metadata",
    "excluded_embed_metadata_keys",
    "excluded_llm_metadata_keys",
    "relationships",
    "metadata_template",
    "metadata_separator",
)


def _text(node: BaseNode) -> MediaResource:
    return MediaResource(text=node.get_content(MetadataMode.NONE))


def _encoded(frames: Any, duration: float) -> bytes:
    """Write frames (T, H, W, 3) that last `duration` seconds as an H.264 file."""
    height, width = (side - side % 2 for side in frames.shape[1:3])  # which yuv420p needs
    rate = Fraction(len(frames) / max(duration, 0.001)).limit_denominator(1000)
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": CRF})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
