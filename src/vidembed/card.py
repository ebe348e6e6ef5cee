"""The model cards of checkpoints. In all functions `name` is how a user loads it: `vidembed.registry.loading_name`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vidembed.checkpoint import LAYER_DEFINITION, CheckpointConfig
from vidembed.registry import NAMESPACE, loading_name

if TYPE_CHECKING:
    from sentence_transformers.base.model_card import BaseModelCardData

    from vidembed.calibration import RerankerConfig

TAGS: Final = ("video-text-retrieval", "vidembed")
TRAINED_TAG: Final = "generated_from_trainer"  # what the trainers of sentence-transformers tag a model with
_UNTRAINED: Final = " No weight was trained."
_HOOK: Final = "import vidembed  # it knows the name\n"
_IMPORT: Final = "from sentence_transformers import SentenceTransformer\n"
_PATH: Final = "  # the path of this folder, from where you run it"
_LOADED: Final = re.compile(rf'\b(VideoEncoder|SentenceTransformer)\("(?:[^"\\\n]|\\.)*"\)(?:{_PATH})?')


def model_card(name: str, config: CheckpointConfig, cosines: tuple[float, float] | None = None) -> str:
    """The README.md of an encoder; `cosines` with the full model's hidden state are those of a model just built."""
    layer = "the last block, with its trained final norm," if config.layer == -1 else f"block {config.layer}"
    untrained, row = "", ""
    if cosines is not None:
        untrained, values = _UNTRAINED, f"{cosines[0]:.8f} (one video), {cosines[1]:.8f} (one text)"
        row = f"| cosine with the hidden state of the full model | {values} |\n"
    return f"""{heading(name)}
A video, image and text embedding model: {layer} of the {config.depth} decoder blocks of `{config.source}`
(`{config.model_type}`), read at the last token of a "in one word" prompt, as VidVec does (arXiv 2602.08099).
It is a plain sentence-transformers checkpoint.{untrained}

{encoder_usage(name, config)}{row}"""


def heading(name: str, *tags: str, library: str = "sentence-transformers", pipeline: str = "feature-extraction") -> str:
    """The metadata of a card for the Hub, and its title: of a path the last part, any other name as it is."""
    lines = "\n".join(f"- {tag}" for tag in ("sentence-transformers", *tags, *TAGS))
    title = name.rpartition("/")[2] if name.startswith(".") else name
    return f"---\nlibrary_name: {library}\npipeline_tag: {pipeline}\ntags:\n{lines}\n---\n\n# {title}\n"


def quoted(name: str) -> str:
    """`name` as a string of Python."""
    return json.dumps(name, ensure_ascii=False)


def path_note(name: str) -> str:
    """The comment of a line that holds `name`, if that is a path."""
    return _PATH if name.startswith(".") else ""


def encoder_usage(name: str, config: CheckpointConfig | None = None) -> str:
    """How to use an encoder, with and without vidembed, and of `config` how its vectors are made; the snippets run."""
    table = ""
    if config is not None:
        table = f"""
| | |
| --- | --- |
| layer | {config.layer} of {config.depth}: {LAYER_DEFINITION} |
| prompt prefix | {f"`{config.prefix}`" if config.prefix else "none"} |
| frames | {config.sampling} |
| similarity | cosine |
| fingerprint | `{config.fingerprint}` |
"""
    return f"""```python
{_imports(name)}
model = SentenceTransformer({quoted(name)}){path_note(name)}
text = model.encode(["a dog runs on the beach"])
```

With vidembed (`pip install vidembed`), frames are chosen by presentation time and decoded ahead of the model:

```python
from vidembed import VideoEncoder

model = VideoEncoder({quoted(name)}){path_note(name)}
video = model.encode(["clip.mp4"])
score = model.similarity(model.encode({{"text": "a dog runs on the beach"}}), video)
```
{table}"""


def _imports(name: str) -> str:
    return _HOOK + _IMPORT if name.startswith(NAMESPACE) else _IMPORT


def updated(card: str, name: str, *, before: str, now: str) -> str:
    """Bring the card of a loaded encoder up to date for the one that is saved; `before` and `now` are fingerprints."""
    card = _LOADED.sub(lambda found: f"{found[1]}({quoted(name)}){path_note(name)}", card)
    card = card.replace(_HOOK, "").replace(_IMPORT, _imports(name))
    return card if before == now else card.replace(before or now, now).replace(_UNTRAINED, "")


def shown_name(data: BaseModelCardData, path: str, model_name: str | None) -> str:
    """How a reader loads the model: by its name on the Hub, which a `model_name` that is no path becomes; or `path`."""
    if model_name and not data.model_id and not Path(model_name).exists():
        data.model_id = model_name
    return data.model_id or loading_name(path)


def write_with_usage(file: Path, write: Callable[[], None], data: BaseModelCardData, usage: str) -> None:
    """Have sentence-transformers `write` its card, such as that of a trained model, and put our `usage` into it."""
    examples, data.generate_widget_examples = data.generate_widget_examples, False  # else it runs the model for them
    try:
        write()
        if file.is_file():  # an error is logged and leaves none
            text = file.read_text(encoding="utf-8")
            text = text.replace(data.generate_usage_snippet(), f"\n{usage.rstrip()}\n")
            file.write_text(text, encoding="utf-8")
    finally:
        data.generate_widget_examples = examples


def reranker_card(name: str, config: RerankerConfig) -> str:
    """The README.md of a reranker."""
    return f"""{heading(name, "cross-encoder", pipeline="text-ranking")}
A reranker for videos and texts: the head of `{config.source}`, asked whether the video matches the sentence (VidVec,
arXiv 2602.08099, section 3.3). It is a plain sentence-transformers `CrossEncoder` checkpoint.

{reranker_usage(name, config)}"""


def reranker_usage(name: str, config: RerankerConfig) -> str:
    """How to use a reranker, and how its scores are made; the snippet runs."""
    calibration = "none"
    if config.calibration is not None:
        calibration = f"sigmoid({config.calibration.slope:.3f} * log-odds {config.calibration.intercept:+.3f})"
    return f"""```python
from vidembed import VideoReranker

reranker = VideoReranker({quoted(name)}){path_note(name)}
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
