"""What can be wrong with a model, as opposed to a video."""

from __future__ import annotations


class BackboneError(ValueError):
    """A model cannot be used as a video backbone; the message says what to change."""


class UnsupportedBackboneError(BackboneError):
    """The architecture is not in the table of `vidembed.backbone.architectures`, or lacks video support."""


class LayerError(BackboneError):
    """The layer asked for is not a decoder block of the model."""


class TemplateError(BackboneError):
    """The chat template of the model cannot carry the prompts of the method."""


class ReadoutMismatchError(BackboneError):
    """The cut model does not reproduce the hidden state that it stands for; nothing is saved."""
