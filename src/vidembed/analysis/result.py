"""The result of an analysis: figures by layer, the chosen layer, its margin; as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidembed.evaluation.metrics import Interval
from vidembed.scoring.checks import FORMAT_VERSION, check_header, from_json, read_object

_KIND = "layer_analysis"


@dataclass(frozen=True)
class DirectionFigures:
    """How well one direction of retrieval works at one layer, on the reporting half; recalls are from 0 to 1."""

    recall_1: Interval
    recall_5: float
    recall_10: float
    median_rank: float  # of the best right answer, from 1; ties count against it
    temperature: float | None = None  # of dual-softmax, fitted on the choosing half; None of raw scores


@dataclass(frozen=True)
class LayerRow:
    """One readout: a decoder block, or the last block with its trained final norm."""

    layer: int  # 1-based decoder block, or -1
    t2v: DirectionFigures  # texts rank videos, by cosine; `v2t` the other way
    v2t: DirectionFigures
    t2v_dual: DirectionFigures | None  # None where not asked for, or the choosing half's scores are all equal
    v2t_dual: DirectionFigures | None
    choosing_t2v: float  # Recall@1 of texts on the choosing half, from 0 to 1; `choosing_v2t` of videos
    choosing_v2t: float


@dataclass(frozen=True)
class Margin:
    """Recall@1 of a chosen layer less that of another readout, on the same queries of the reporting half."""

    over_prefix: str  # of the other readout
    over_layer: int
    t2v: Interval  # texts ranking videos by cosine, paired; `v2t` the other way
    v2t: Interval
    kind: str = ""  # of the queries, where several kinds were given


@dataclass(frozen=True)
class PromptAnalysis:
    """The layers of a model with one prompt and one kind of query."""

    prefix: str  # what stands before the content: "none", "zero-shot" or the text itself
    rows: tuple[LayerRow, ...]  # one a decoder block, and last that of layer -1
    chosen_layer: int  # the layer with the best Recall@1 on the choosing half, in the mean over kinds of queries
    margins: tuple[Margin, ...]  # over layer -1, and over the last block before the norm
    kind: str = ""  # of the queries, such as "dense" and "short"; empty where they are of one kind

    @property
    def margin(self) -> Margin:
        """Over the final layer, -1."""
        return self.margins[0]

    def row(self, layer: int) -> LayerRow:
        """The row of a layer; a ValueError if there is none."""
        for row in self.rows:
            if row.layer == layer:
                return row
        raise ValueError(f"layer={layer!r}: expected 1..{len(self.rows) - 1} or -1.")


@dataclass(frozen=True)
class Sample:
    """What a model was analyzed on: a half of the videos to choose the layer on, and a half that the figures are of."""

    choosing_videos: int
    choosing_texts: int
    reporting_videos: int
    reporting_texts: int
    videos_left_out: int  # videos whose texts all went to the other half
    chance: float  # Recall@1 of a random ranking of the reporting half, the same in both directions of one kind
    seed: int  # of the split and the bootstrap
    resamples: int
    skipped: tuple[str, ...] = ()  # what failed, with ``on_error="skip"``: its name and why
    texts_lost: int = 0  # texts left out since all their videos failed


@dataclass(frozen=True)
class LayerAnalysis:
    """Retrieval at every decoder block of a model."""

    model: str  # what was analyzed: a name, or the last part of a path
    model_type: str  # its architecture, as transformers names it
    depth: int  # its decoder blocks
    sample: Sample  # of all kinds of queries together
    prompts: tuple[PromptAnalysis, ...]  # one a prefix and kind of query
    chosen_prefix: str  # the prefix whose chosen layer does best on the choosing half; the first of equals
    prefix_margins: tuple[Margin, ...] = ()  # the choice over the chosen layer of each other prefix, one a kind
    kinds: dict[str, Sample] = field(default_factory=dict)  # by kind of query, where kinds were named

    @property
    def curves(self) -> dict[str, PromptAnalysis]:
        """The analyses with `chosen_prefix`, by kind of query; all have the same chosen layer."""
        return {prompt.kind: prompt for prompt in self.prompts if prompt.prefix == self.chosen_prefix}

    @property
    def chosen(self) -> PromptAnalysis:
        """The analysis with `chosen_prefix`, of the first kind of query."""
        return next(iter(self.curves.values()))

    @property
    def chosen_layer(self) -> int:
        """The layer to build with: best on the choosing half, with `chosen_prefix`."""
        return self.chosen.chosen_layer

    @property
    def rows(self) -> tuple[LayerRow, ...]:
        """The rows of `chosen`: one a decoder block, and last that of layer -1."""
        return self.chosen.rows

    @property
    def margin(self) -> Margin:
        """The chosen layer over the final one, -1, of `chosen`."""
        return self.chosen.margin

    def summary(self) -> str:
        """One sentence a prompt and kind of query: the layer, its Recall@1 on the reporting half, and its margin."""
        return "\n".join(_sentence(self, prompt) for prompt in self.prompts)

    def table(self) -> str:
        """The figures as Markdown, in percent: one table a prompt and kind of query, the chosen layer in bold."""
        parts = ((f"{self.model}, {_name(one)}", _table(one), _sentence(self, one)) for one in self.prompts)
        return "\n\n".join("\n\n".join(part) for part in parts)

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON values."""
        return {"kind": _KIND, "format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> LayerAnalysis:
        """Make an analysis of what `to_dict` gave; a ValueError if it is of another kind or format, or incomplete."""
        check_header(_KIND, content, remedy="analyze the model again")
        fields = {name: value for name, value in content.items() if name not in ("kind", "format_version")}
        try:
            made: LayerAnalysis = from_json(cls, fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a complete layer analysis ({error}); analyze the model again") from error
        return made

    def save(self, file: str | Path) -> None:
        """Write the analysis to a JSON file."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        Path(file).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> LayerAnalysis:
        """Read a file that `save` wrote; a FileNotFoundError if there is none, and a ValueError if it is another."""
        content = read_object(file)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cells(raw: DirectionFigures, dual: DirectionFigures | None) -> list[str]:
    after = "-"
    if dual is not None:
        after = " / ".join(map(_percent, (dual.recall_1.estimate, dual.recall_5, dual.recall_10)))
    others = f"{_percent(raw.recall_5)} / {_percent(raw.recall_10)}"
    return [raw.recall_1.percent().text(), others, f"{raw.median_rank:g}", after]


def _table(prompt: PromptAnalysis) -> str:
    level = f"{100 * prompt.margin.t2v.level:g} %"
    columns = ["layer"]
    for direction in ("T2V", "V2T"):
        columns += [f"{direction} R@1 ({level})", "R@5 / 10", "median rank", "dual-softmax R@1 / 5 / 10"]
    lines = [columns, ["---"] * len(columns)]
    for row in prompt.rows:
        name = f"-1 (block {len(prompt.rows) - 1} and final norm)" if row.layer == -1 else str(row.layer)
        name = f"**{name}**" if row.layer == prompt.chosen_layer else name
        lines.append([name, *_cells(row.t2v, row.t2v_dual), *_cells(row.v2t, row.v2t_dual)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(prompt: PromptAnalysis) -> str:
    return f"prefix {prompt.prefix}" + (f", {prompt.kind} queries" if prompt.kind else "")


def _sentence(analysis: LayerAnalysis, prompt: PromptAnalysis) -> str:
    sample, row, margin = (
        analysis.kinds.get(prompt.kind, analysis.sample),
        prompt.row(prompt.chosen_layer),
        prompt.margin,
    )
    others = [kind for kind in analysis.kinds if kind != prompt.kind]
    together = f", by the mean with {' and '.join(others)} queries" if others else ""
    found = (row.t2v.recall_1, row.v2t.recall_1, margin.t2v, margin.v2t)
    t2v, v2t, t2v_margin, v2t_margin = (one.percent().text() for one in found)
    return (
        f"Layer {prompt.chosen_layer} of {analysis.depth} ({_name(prompt)}), chosen on {sample.choosing_videos} "
        f"videos{together}. On {sample.reporting_videos} others with {sample.reporting_texts} texts: R@1 {t2v} text to "
        f"video, {v2t} video to text; over the final layer (-1) {t2v_margin} and {v2t_margin} points."
    )
