"""The model cards of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidembed.checkpoint import LAYER_DEFINITION, CheckpointConfig

if TYPE_CHECKING:
    from vidembed.reranking.config import RerankerConfig


def model_card(name: str, config: CheckpointConfig, cosines: tuple[float, float]) -> str:
    """Write the README.md of a checkpoint.

    Args:
        name: How a user loads it.
        config: Its `CheckpointConfig`.
        cosines: Cosine with the full model's hidden state on one video and one text, as measured when it was built.
    """
    layer = "the last block, with its trained final norm" if config.layer == -1 else f"block {config.layer}"
    prefix = f"`{config.prefix}`" if config.prefix else "none"
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags:
- sentence-transformers
- video-text-retrieval
- vidembed
---

# {name}

A video, image and text embedding model: {layer} of the {config.depth} decoder blocks of `{config.source}`
(`{config.model_type}`), read at the last token of a "in one word" prompt, as VidVec does (arXiv 2602.08099).
It is a plain sentence-transformers checkpoint. No weight was trained.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
text = model.encode(["a dog runs on the beach"])
```

Frames are chosen by presentation time and decoded ahead of the model with vidembed:

```python
from vidembed import VideoEncoder

model = VideoEncoder("{name}")
video = model.encode(["clip.mp4"])
score = model.similarity(model.encode({{"text": "a dog runs on the beach"}}), video)
```

| | |
| --- | --- |
| layer | {config.layer} of {config.depth}: {LAYER_DEFINITION} |
| prompt prefix | {prefix} |
| frames | {config.sampling} |
| similarity | cosine |
| cosine with the hidden state of the full model | {cosines[0]:.8f} (one video), {cosines[1]:.8f} (one text) |
| fingerprint | `{config.fingerprint}` |
"""


def reranker_card(name: str, config: RerankerConfig) -> str:
    """Write the README.md of a saved reranker.

    Args:
        name: How a user loads it.
        config: How it makes scores.
    """
    calibration = "none"
    if config.calibration is not None:
        calibration = f"sigmoid({config.calibration.slope:.3f} * log-odds {config.calibration.intercept:+.3f})"
    return f"""---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- sentence-transformers
- cross-encoder
- video-text-retrieval
- vidembed
---

# {name}

A reranker for videos and texts: the head of `{config.source}`, asked whether the video matches the sentence (VidVec,
arXiv 2602.08099, section 3.3). It is a plain sentence-transformers `CrossEncoder` checkpoint; no weight was trained.

```python
from vidembed import VideoReranker

reranker = VideoReranker("{name}")
reranker.rank("a dog runs on the beach", ["a.mp4", "b.mp4"])
```

| | |
| --- | --- |
| score mode | {config.mode}; stock sentence-transformers scores yes_no, without the calibration |
| calibration | {calibration} |
| fused with a first stage | {"yes, in `rank(..., first_stage=...)`" if config.fusion else "no"} |
| weights | {config.weights} |
| frames | {config.sampling} |
"""
