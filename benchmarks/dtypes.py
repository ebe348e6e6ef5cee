"""How fast a CPU computes a linear layer in each dtype, and quantized.

    python -m benchmarks.dtypes

One linear layer as Qwen2-VL-2B has them (1,536 to 8,960), 256 tokens, random weights; the CPU time of the process, the
second best of seven. Older CPUs are played by telling oneDNN, which computes for torch, not to use the newer
instructions (``ONEDNN_MAX_CPU_ISA``); quantized layers, by torchao, run on the CPU as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import torch
from torch import nn
from torchao.quantization import quantize_

from benchmarks.common import environment, keep
from vidembed import ModelOptions

WIDTH, WIDER, TOKENS = 1536, 8960, 256
LEVELS = {  # newest instructions that may be used, of an x86 CPU
    "as it is": "DEFAULT",
    "AVX512-FP16, no AMX": "AVX512_CORE_FP16",
    "AVX512-BF16, no AMX": "AVX512_CORE_BF16",
    "AVX512, no bfloat16": "AVX512_CORE_VNNI",
    "AVX2": "AVX2",
}
DTYPES = ("float32", "bfloat16", "float16")


@torch.inference_mode()
def milliseconds(layer: nn.Module, dtype: torch.dtype) -> float:
    """CPU time of a call."""
    tokens = torch.randn(TOKENS, WIDTH).to(dtype)
    layer(tokens)
    taken = []
    for _ in range(7):
        began = time.process_time()
        layer(tokens)
        taken.append(time.process_time() - began)
    return round(1000 * sorted(taken)[1], 1)


def measured(quantized: bool) -> dict[str, float]:
    """Milliseconds by dtype, and by quantization and dtype."""
    found = {}
    for name in DTYPES:
        dtype: torch.dtype = getattr(torch, name)
        found[name] = milliseconds(nn.Linear(WIDTH, WIDER, bias=False).to(dtype), dtype)
    if quantized:
        for quantize, name in (("int8", "float32"), ("int8", "bfloat16"), ("int4", "bfloat16")):
            dtype = getattr(torch, name)
            layer = nn.Linear(WIDTH, WIDER, bias=False).to(dtype)
            how = ModelOptions(quantize=quantize, device="cpu").kwargs()["model_kwargs"]["quantization_config"]
            quantize_(layer, how.quant_type)
            found[f"{quantize} {name}"] = milliseconds(layer, dtype)
    return found


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1] == "DEFAULT")))
        return
    has = {
        name: bool(value) for name, value in torch.cpu.get_capabilities().items() if "bf16" in name or "fp16" in name
    }
    levels = {}
    for name, level in LEVELS.items():
        command = [sys.executable, "-m", "benchmarks.dtypes", level]
        run = subprocess.run(
            command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": level}, stdout=subprocess.PIPE, text=True, check=True
        )
        levels[name] = json.loads(run.stdout.splitlines()[-1])
    keep(__file__, {"environment": environment(), "capabilities": has, "milliseconds": levels})


if __name__ == "__main__":
    main()
