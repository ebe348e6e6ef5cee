"""The model cards of checkpoints. In all functions `name` is how a user loads it: `vidembed.registry.loading_name`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jinja2

from vidembed.checkpoint import LAYER_DEFINITION, CheckpointConfig
from vidembed.registry import BUNDLED, HUB, NAMESPACE, loading_name

if TYPE_CHECKING:
    from sentence_transformers.base.model_card import BaseModelCardData

    from vidembed.calibration import RerankerConfig

TAGS: Final = ("video-text-retrieval", "vidembed")
_TAGS: Final = ("sentence-transformers", *TAGS)
TRAINED_TAG: Final = "generated_from_trainer"  # what the trainers of sentence-transformers tag a model with
_UNTRAINED: Final = " No weight was trained."
_HOOK: Final = "import vidembed  # it knows the name\n"
_IMPORT: Final = "from sentence_transformers import SentenceTransformer\n"
_PATH: Final = "  # the path of this folder, from where you run it"
_LOADED: Final = re.compile(rf'\b(VideoEncoder|SentenceTransformer)\("(?:[^"\\\n]|\\.)*"\)(?:{_PATH})?')

_CARDS: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("cards")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - Markdown
)


def quoted(name: str) -> str:
    """`name` as a string of Python."""
    return json.dumps(name, ensure_ascii=False)


def path_note(name: str) -> str:
    """The comment of a line that holds `name`, if that is a path."""
    return _PATH if name.startswith(".") else ""


def render(template: str, name: str, **values: object) -> str:
    """A card, or a part of one, of a file of the folder ``cards``; `values` are what it names beside these.

    Its front matter is what the Hub reads. The licence is that of the base model, which is linked where its name is one
    of the Hub: a folder of this machine has none there.
    """
    source = str(getattr(values.get("config"), "source", ""))
    known: dict[str, object] = {"name": name, "quoted": quoted(name), "path_note": path_note(name)}
    known |= {"imports": _imports(name), "layer_definition": LAYER_DEFINITION, "untrained": _UNTRAINED}
    known |= {"base_model": _on_hub(source), "bundled": source in {NAMESPACE + one for one in BUNDLED}}
    known |= {"library": "sentence-transformers", "pipeline": "feature-extraction", "tags": _TAGS}
    return _CARDS.get_template(template).render(known | values)


def _on_hub(source: str) -> str | None:
    """The name on the Hub of what a model was made of, None if that is a folder or a name under ``vidembed/``."""
    return source.removeprefix(HUB) if "/" in source and not source.startswith(NAMESPACE) else None


def model_card(name: str, config: CheckpointConfig, cosines: tuple[float, float] | None = None) -> str:
    """The README.md of an encoder; `cosines` with the full model's hidden state are those of a model just built."""
    return render("encoder.md", name, config=config, cosines=cosines)


def encoder_usage(name: str, config: CheckpointConfig | None = None) -> str:
    """How to use an encoder, with and without vidembed, and of `config` how its vectors are made; the snippets run."""
    return render("encoder_usage.md", name, config=config)


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
    tags = ("sentence-transformers", "cross-encoder", *TAGS)
    return render("reranker.md", name, config=config, tags=tags, pipeline="text-ranking")


def reranker_usage(name: str, config: RerankerConfig) -> str:
    """How to use a reranker, and how its scores are made; the snippet runs."""
    return render("reranker_usage.md", name, config=config)
