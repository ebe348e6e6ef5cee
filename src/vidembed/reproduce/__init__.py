"""What the paper and this package say, measured on the bundled model: ``vidembed reproduce shapes``.

`method` has layers, reranking and alignment, `captions` search by what the model itself says of the clips.
"""

from __future__ import annotations

from vidembed.reproduce.captions import measure_captions
from vidembed.reproduce.method import ALIGNED, measure
from vidembed.reproduce.report import as_text, write

__all__ = ["ALIGNED", "as_text", "measure", "measure_captions", "write"]
