"""What a text or node is: a video, an image or words. And what text may name."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from llama_index.core.bridge.pydantic import field_validator
from llama_index.core.schema import BaseNode, ImageNode, MediaResource, MetadataMode

from vidembed import adapters
from vidembed.uri import VideoRef, parse_video_uri, video_uri
from vidembed.video import VideoSegment, item_name

READY: Final = "ready:"
"""Beginning of the name of a model that was given loaded, and cannot be loaded by that name."""

_METADATA = re.compile(r"[^\s:][^:\n]{0,200}: ")  # how LlamaIndex's template begins: "key: value", then an empty line


class NothingToEmbedError(ValueError):
    """A text or node is empty. Its vector would be the vector of nothing, near to every other such one."""


class Gate(adapters.Gate):
    """The fields that say which files and addresses text may name: ``allowed_schemes`` and ``root``."""

    @field_validator("root", mode="before")
    @classmethod
    def _as_text(cls, root: Any) -> Any:
        return os.fspath(root) if isinstance(root, os.PathLike) else root  # text, so that to_json() can write it

    # -- texts and files ---------------------------------------------------------------------------------------------

    def video_in(self, text: str) -> VideoRef | None:
        """Return the video that a text names, or None for any other text.

        Args:
            text: One video URI, white space around it left out; metadata may stand before it, as LlamaIndex writes it.

        Raises:
            VideoUriError: It names one that is malformed or not allowed.
        """
        return super().video_in(_without_metadata(text))

    def checked(self, source: str | os.PathLike[str]) -> VideoRef:
        """Return the video or image of a path, or http(s) address.

        Raises:
            VideoUriError: It is not allowed.
        """
        found = parse_video_uri(video_uri(source), allowed_schemes=self.allowed_schemes, root=self.root)
        assert found is not None  # noqa: S101 - video_uri wrote it
        return found

    def text_input(self, text: str, name: str = "text") -> Any:
        """Return what `VideoEncoder` is to embed for a text that is a document.

        Args:
            text: A video URI, or words; metadata may stand before it, as LlamaIndex writes it.
            name: What messages call it.

        Raises:
            NothingToEmbedError: The text is empty.
            VideoUriError: It names a video that is malformed or not allowed, or is the bare path of one.
            TypeError: It is no string.
        """
        if isinstance(text, str) and not text.strip():
            raise NothingToEmbedError(
                f"{name}: empty. LlamaIndex gives embeddings the text of a node, and a node with nothing but a "
                "video_resource has none: make nodes with VideoReader and VideoNodeParser, which write a video URI."
            )
        words = _without_metadata(text) if isinstance(text, str) else text
        found = self.document_in(words, name=name, loader="VideoReader")
        return {"text": text} if found is None else found.segment()  # a dict, since text could look like a file's name

    def video_input(self, video: Any) -> Any:
        """Return what `VideoEncoder` is to embed for a video: a video URI, a path, or any other form that it takes.

        Raises:
            VideoUriError: It is not allowed.
        """
        if isinstance(video, str) and (found := self.video_in(video)) is not None:
            return found.segment()
        if isinstance(video, (str, os.PathLike)):
            return self.checked(video).segment()
        if isinstance(video, VideoSegment) and isinstance(video.path, (str, os.PathLike)):
            self.checked(video.path)
        return {"video": video}

    def image_input(self, image: Any) -> Any:
        """Return what `VideoEncoder` is to embed for an image: a path, an address or its bytes in a file object.

        Raises:
            VideoUriError: It is not allowed.
        """
        if isinstance(image, (str, os.PathLike)):
            return {"image": os.fspath(self.checked(image).source)}
        if hasattr(image, "read"):
            from PIL import Image  # noqa: PLC0415 - few need it

            image.seek(0)
            return {"image": Image.open(image).convert("RGB")}
        return {"image": image}

    # -- nodes -------------------------------------------------------------------------------------------------------

    def node_video(self, node: BaseNode) -> Any | None:
        """Return the video of a node as `VideoEncoder` takes it, or None if it is anything else.

        The URI in its text comes first, since only it says which part of the video. Else its ``video_resource``.

        Raises:
            VideoUriError: It names a video that is malformed or not allowed.
        """
        if (found := self.video_in(node.get_content(MetadataMode.NONE))) is not None:
            return found.segment()
        return _resource(getattr(node, "video_resource", None), self.video_input)

    def node_input(self, node: BaseNode) -> Any:
        """Return what `VideoEncoder` is to embed for a node: its video, else its text, else its image.

        Raises:
            NothingToEmbedError: It has none of these; the message names it.
            VideoUriError: It names a video that is malformed or not allowed, or its text is the bare path of one.
        """
        if (video := self.node_video(node)) is not None:
            return video
        if (text := node.get_content(MetadataMode.NONE)).strip():
            self.text_input(text, node_name(node))  # refuses the bare path of a video
            return {"text": node.get_content(MetadataMode.EMBED)}
        image = _resource(getattr(node, "image_resource", None), self.image_input)
        if image is None and isinstance(node, ImageNode) and (place := node.image_path or node.image_url):
            image = self.image_input(place)
        if image is None:
            raise NothingToEmbedError(f"node {node.node_id} has no text, video or image to embed")
        return image


def _without_metadata(text: str) -> str:
    words = text.strip()
    metadata, gap, rest = words.rpartition("\n\n")
    return rest.lstrip() if gap and _METADATA.match(metadata) else words


def _resource(resource: MediaResource | None, as_input: Callable[[Any], Any]) -> Any | None:
    """The input of a `MediaResource`, whose bytes are base64."""
    if resource is None:
        return None
    if resource.path is not None or resource.url is not None:
        return as_input(str(resource.path if resource.path is not None else resource.url))
    return None if resource.data is None else as_input(BytesIO(base64.b64decode(resource.data)))


def node_name(node: BaseNode) -> str:
    """Name a node for messages: its id, and the beginning of its text or its file."""
    text = node.get_content(MetadataMode.NONE)
    resource = getattr(node, "video_resource", None)
    shown = text if text.strip() else getattr(resource, "path", None)
    return f"node {node.node_id}" + (f" ({item_name(shown)})" if shown else "")


def check_loadable(name: str, argument: str) -> None:
    """Refuse the name of a model that was given loaded.

    Raises:
        ValueError: It is one.
    """
    if name.startswith(READY):
        raise ValueError(
            f"{name!r} cannot be loaded, because it was passed as an object. Pass it again as {argument}=..., for "
            f"example from_dict(saved, {argument}=...)."
        )
