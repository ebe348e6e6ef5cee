"""Writes a trained model as a folder that transformers loads by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor


def export(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, out: Path) -> None:
    """Saves weights in float16 and a configuration that says float32, so that they load as float32.

    Args:
        model: The trained model; it is not changed.
        processor: Its processor.
        out: The folder, made where missing.
    """
    half: Any = copy.deepcopy(model)
    half = half.half().cpu()
    half.save_pretrained(out)
    processor.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        if "dtype" in part:
            part["dtype"] = "float32"
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
