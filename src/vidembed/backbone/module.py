"""A model that is already in memory as a sentence-transformers `Transformer` module."""

from __future__ import annotations

import tempfile
from typing import Any, Literal

from sentence_transformers.base.modules import Transformer
from torch import nn

from vidembed.video.sampling import Sampling


class _InMemoryTransformer(Transformer):
    """`Transformer` whose model is handed over instead of read from disk.

    Everything else (modalities, message format, forward signature) is decided by the host's own constructor, which
    reads the processor back from where it was saved, as it will when the checkpoint is loaded.
    """

    def __init__(self, model: Any, processor_dir: str, **kwargs: Any) -> None:
        object.__setattr__(self, "_handed_over", model)
        super().__init__(processor_dir, **kwargs)
        object.__delattr__(self, "_handed_over")

    def _load_config(self, *_args: Any, **_kwargs: Any) -> tuple[Any, bool]:
        return self._handed_over.config, False

    def _load_model(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._handed_over


def as_transformer_module(
    model: nn.Module,
    processor: Any,
    *,
    chat_template: str,
    task: Literal["feature-extraction", "any-to-any"] = "feature-extraction",
) -> Transformer:
    """Wrap a loaded model, sharing its weights.

    Args:
        model: A transformers model.
        processor: Its processor. It is left as it was.
        chat_template: The chat template that the module renders inputs with.
        task: The ``transformer_task`` of sentence-transformers.

    Returns:
        A plain `Transformer` (no subclass: its class name is what ``modules.json`` will carry).
    """
    with tempfile.TemporaryDirectory(prefix="vidembed-") as folder:
        processor.save_pretrained(folder)
        module = _InMemoryTransformer(
            model, folder, transformer_task=task, processor_kwargs={"chat_template": chat_template}
        )
    module.__class__ = Transformer
    processor = module.processor
    processor.tokenizer.padding_side = "left"
    video_processor = processor.video_processor
    video_processor.do_sample_frames = True  # stock users pass whole videos (`declare_sampling`); we sample ourselves
    if getattr(video_processor, "cap_pixels_per_frame", True) is None:
        # undecided, transformers warns and lets a long video take more tokens than Qwen's own qwen-vl-utils would
        video_processor.cap_pixels_per_frame = True
    return module


def declare_sampling(processor: Any, sampling: Sampling) -> None:
    """Write a frame grid into a processor, for stock users of a checkpoint: with none, it cannot sample a video at all.

    Their frames are not ours: stock sampling goes by index and not by time, and rounds to whole temporal patches.

    Args:
        processor: Of a checkpoint that is about to be saved; changed in place.
        sampling: The grid; its ``fps`` and ``max_frames`` are written.
    """
    video_processor = processor.video_processor
    video_processor.num_frames = None  # stock sampling takes this or fps
    video_processor.fps = sampling.fps
    video_processor.max_frames = sampling.max_frames
