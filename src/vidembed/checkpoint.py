"""``vidembed_config.json`` of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vidembed.errors import BackboneError

FILE_NAME = "vidembed_config.json"
FORMAT_VERSION = 1
LAYER_DEFINITION = (
    "layer l is the output of decoder block l (1-based, before any norm), scaled by an RMSNorm with unit weight; "
    "layer -1 is the output of the last block through the trained final norm"
)


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings that the vectors of a checkpoint depend on, beside those that sentence-transformers keeps."""

    layer: int  # decoder block that is read, or -1 (see `LAYER_DEFINITION`)
    depth: int  # decoder blocks of the model that it was cut from
    model_type: str  # architecture, as transformers names it
    source: str  # what it was built from
    prefix: str | None  # what stands before the content in the prompt, None for nothing
    sampling: dict[str, Any]  # the frame grid, as `Sampling.as_dict`
    fingerprint: str = ""  # `VideoEncoder.fingerprint` when it was saved; empty before

    def write(self, folder: str | Path) -> None:
        """Write the file into a checkpoint folder."""
        content = {"format_version": FORMAT_VERSION, "layer_definition": LAYER_DEFINITION, **asdict(self)}
        Path(folder, FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: str | Path) -> CheckpointConfig:
        """Read a file that `write` wrote; BackboneError if it is of a newer format, or not such a file."""
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        content.pop("layer_definition", None)
        if version != FORMAT_VERSION:
            raise BackboneError(
                f"{file}: format_version {version!r}; this vidembed reads {FORMAT_VERSION}. Upgrade vidembed, or build "
                "the checkpoint again."
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise BackboneError(f"{file}: {error}. Build the checkpoint again.") from error
