"""What `VideoEncoder` and `VideoReranker` share: inputs of every kind, through the host's ``preprocess``."""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections import OrderedDict
from typing import Any, NoReturn, cast

from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from torch import nn

from vidembed.backbone import ARCHITECTURES, BackboneError
from vidembed.backbone.cut import without_hooks
from vidembed.backbone.load import Backbone, load_backbone
from vidembed.encoding.inputs import kind_of, to_host_input
from vidembed.encoding.pipeline import max_positions
from vidembed.encoding.prepared import Prepared
from vidembed.video import Sampling, VideoError, item_name
from vidembed.video.download import UrlAccess

_PROCESSOR_LOCK = threading.Lock()
"""Fast tokenizers hold padding and truncation as state, which one thread could change under another. Decoding, the
long part, runs outside. Of the module and not of an encoder, which process pools pickle."""


class VideoInputs(BaseModel):
    """A sentence-transformers model that decodes its videos itself.

    Attributes:
        backbone: The MLLM that the modules are of, or None for what was loaded from a checkpoint.
        sampling: The frame grid.
        video_backend: Video decoder.
        allow_url: Whether http(s) sources are fetched.
    """

    backbone: Backbone | None
    sampling: Sampling
    video_backend: str
    allow_url: UrlAccess

    @property
    def _transformer(self) -> Transformer:
        return cast("Transformer", self[0])

    @abstractmethod
    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        """Make the modules of a loaded MLLM; its weights are shared."""

    def __getstate__(self) -> dict[str, Any]:
        """For process pools: without the full MLLM, and without hooks, which do not pickle."""
        modules = {name: without_hooks(module) for name, module in self._modules.items() if module}
        return {**self.__dict__, "backbone": None, "_modules": modules}

    def _load_default_modules(
        self,
        model_name_or_path: str,
        token: bool | str | None,
        cache_folder: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **_host: Any,
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Called by the host for a model that is none of its own: make the modules of the MLLM."""
        if trust_remote_code:
            raise BackboneError(
                "trust_remote_code=True is refused: supported models load with transformers' own classes."
            )
        backbone = load_backbone(
            model_name_or_path,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            token=token,
            cache_dir=cache_folder,
            revision=revision,
            local_files_only=local_files_only or None,
        )
        return self._modules_of(backbone), {}

    def _load_converted_modules(  # type: ignore[override]
        self, model_name_or_path: str, *, model_type: str, **_host: Any
    ) -> NoReturn:
        """Called by the host for a checkpoint of another class, which it would take apart and give new modules.

        Raises:
            BackboneError: Always: the other class's prompt would be taken for the model's own.
        """
        kinds = {"SentenceTransformer": "VideoEncoder", "CrossEncoder": "VideoReranker"}
        raise BackboneError(
            f"{model_name_or_path} is a {model_type} checkpoint, which {type(self).__name__} cannot open. Load it as "
            f"{kinds.get(model_type, model_type)}, or give {type(self).__name__} a checkpoint of its own kind or the "
            "video MLLM that this one was made of."
        )

    def _load(self, item: Any, threads: int = 1) -> tuple[Any, list[dict[str, Any]]]:
        row = ARCHITECTURES.get(self._transformer.config.model_type)
        return to_host_input(
            item,
            self.sampling,
            backend=self.video_backend,
            allow_url=self.allow_url,
            min_frames=row.min_frames if row else 1,
            threads=threads,
        )

    def _call_host(
        self,
        items: list[Any],
        message_metadata: list[dict[str, Any]],
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        merged = copy.copy(processing_kwargs or {})
        # the frames are sampled already: else processors sample them again, or guess 24 fps
        merged["video"] = {**merged.get("video", {}), "do_sample_frames": False}
        if message_metadata:
            merged["video"]["video_metadata"] = message_metadata
        how = {"prompt": prompt, **kwargs}
        uncut = {**merged, "text": {**merged.get("text", {}), "truncation": False, "max_length": None}}
        with _PROCESSOR_LOCK:
            if not all(isinstance(item, dict) and set(item) == {"text"} for item in items):
                # cut, it would lose the end of its prompt, where it is read: the host keeps that end for texts only
                return super().preprocess(items, processing_kwargs=uncut, **how)
            features = super().preprocess(items, processing_kwargs=merged, **how)
            longest = int(features["attention_mask"].sum(1).max())
            if longest >= (max_positions(self._transformer.config) or longest + 1):  # is it as long, or cut there?
                return super().preprocess(items, processing_kwargs=uncut, **how)
            most = merged.get("text", {}).get("max_length") or kwargs.get("max_length") or self.max_seq_length
            if most is not None and longest >= most:  # texts were cut: is anything left of them?
                empty = super().preprocess([{"text": ""}], processing_kwargs=uncut, **how)["input_ids"].shape[1]
                if longest <= empty:
                    raise ValueError(
                        f"max_seq_length={most}: the prompt alone takes {empty} tokens, so nothing would be left of "
                        "the text. Set it higher."
                    )
        return features

    def _prepare_one(
        self,
        index: int,
        item: Any,
        *,
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None,
        task: str | None,
        threads: int = 1,
    ) -> Prepared:
        host_input, metadata = self._load(item, threads)
        features = self._call_host([host_input], metadata, prompt, processing_kwargs, task=task)
        return Prepared(index, name_of(item), dict(features))


def is_text(item: Any) -> bool:
    """Whether an input is plain text. One that cannot be told apart is not: preparing it raises its error."""
    try:
        return kind_of(item) == "text"
    except (ValueError, VideoError):
        return False


def name_of(item: Any) -> str:
    """Name an input for messages."""
    if isinstance(item, dict) and "video" in item:
        item = item["video"]
    try:
        kind = kind_of(item)
    except (ValueError, TypeError, VideoError):
        return f"<{type(item).__name__}>"
    if kind == "video":
        return item_name(item)
    text = repr(item["text"] if isinstance(item, dict) and "text" in item else item)
    return text if len(text) <= 80 else text[:77] + "..."
