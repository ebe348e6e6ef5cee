"""Figures of ``vidembed reproduce`` as Markdown and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vidembed.analysis import LayerAnalysis, plot_layers
from vidembed.evaluation.two_stage import DIRECTIONS
from vidembed.reproduce.captions import STAGES
from vidembed.reproduce.method import COLUMNS, QUERIES, Values

# VideoLLaMA3-7B on MSR-VTT 1k-A, Recall@1: text to video raw, with dual-softmax, video to text with dual-softmax
# (VidVec, arXiv 2602.08099). Empty where the paper gives none
PAPER: Final = (
    ("ZS, final layer", "14.3", "", ""),
    ("ZS, layer 24 of 28", "", "42.1", ""),
    ("ZS, layer 24 + P(Yes), K = 100", "", "52.1", ""),
    ("O, final layer", "48.4", "52.5", "54.9"),
    ("O, final layer + P(Yes), K = 10", "", "56.2", "54.9"),
)


def as_text(result: Values) -> str:
    """The figures as Markdown, the paper's beside them."""
    half = result["layer_clips"] // 2
    own = result["without_labels"]
    said = f"what the model says of {own['used']} of {own['described']} (dense and {own['kind']} texts)"
    lines = [
        f"Layer chosen on {half} other clips, by captions and summaries: {result['layer']}.",
        f"Without their texts, by {said}: {own['layer']}.",
        "",
        f"Layer {result['layer']} on {half} more clips, over the final one, R@1 in points:",
        "",
    ]
    for kind, found in result["layers"].items():
        t2v, v2t = (f"{gain:+.1f} ({low:.1f} to {high:.1f})" for gain, low, high in found["margin"].values())
        lines.append(f"- {kind}: text to video {t2v}, video to text {v2t}")
    for kind, found in result["queries"].items():
        lines += [
            "",
            f"{result['clips']} clips, queries: {kind}, {found['distinct']} different ones; R@1 / 5 / 10 in percent",
            "",
            "| | K | text to video | with dual-softmax | video to text | with dual-softmax |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in found["table"]:
            cells = (" / ".join(f"{row[column][f'R@{k}']:.1f}" for k in (1, 5, 10)) for column in COLUMNS)
            lines.append(f"| {row['name']} | {row['k'] or ''} | {' | '.join(cells)} |")
    lines += [
        "",
        "The paper, for the shape and not the size: VideoLLaMA3-7B on MSR-VTT 1k-A, R@1 (arXiv 2602.08099)",
        "",
        "| | text to video | with dual-softmax | video to text, with dual-softmax |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in PAPER),
    ]
    lines += ["", *_captions_lines(result["captions"])] if "captions" in result else []
    return "\n".join(lines)


def write(result: Values, analysis: LayerAnalysis, out: Path) -> list[Path]:
    """Write ``shapes.json``, ``shapes.md`` and a plot of the layers (with the extra ``plot``) into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "shapes.json", out / "shapes.md", out / "layers.png"]
    files[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(as_text(result) + "\n", encoding="utf-8")
    plot_layers([analysis], files[2])
    return files


def _captions_lines(result: Values) -> list[str]:
    """The figures of search by captions: first stages, and how they fall as captions get worse."""
    sizes = "{sets} sets of {clips} clips, each searched by itself; layer {layer}".format_map(result)
    lines = [f"{sizes}. Text to video and video to text, R@1 with 95 % interval, R@5 / 10 in percent:"]
    for kind in QUERIES:
        lines += ["", f"Queries: {kind}", "", "| first stage | text to video | | video to text | |"]
        lines.append("| --- | --- | --- | --- | --- |")
        for row in result["noise"][0]["queries"][kind]:
            cells = []
            for way in DIRECTIONS:
                low, high = row[way]["interval"]
                cells.append(f"{row[way]['R@1']:.1f} ({low:.1f} to {high:.1f})")
                cells.append(" / ".join(f"{row[way][f'R@{k}']:.1f}" for k in (5, 10)))
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        "R@1 text to video, captions / summaries, by the share of words for attributes that are made wrong:",
        "",
    ]
    lines.append(f"| first stage | {' | '.join(format(one['share'], '.0%') for one in result['noise'])} |")
    lines.append(f"| --- |{' --- |' * len(result['noise'])}")
    for place, name in enumerate(STAGES):
        cells = [
            " / ".join(f"{one['queries'][kind][place]['t2v']['R@1']:.1f}" for kind in QUERIES)
            for one in result["noise"]
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *_reranked_lines(result["reranked"]), "", *_mixed_lines(result["noise"])]


def _reranked_lines(result: Values) -> list[str]:
    """The figures of first stages whose candidates the head orders again, and what the last row is above others."""
    of_kind = result["queries"]
    lines = [f"Reranked, K = {result['k']}: text to video, R@1 with 95 % interval, R@5 / 10 in percent:", ""]
    lines.append(f"| first stage, how it is reranked | {' | | '.join(of_kind)} | |")
    lines.append(f"| --- |{' --- | --- |' * len(of_kind)}")
    for rows in zip(*(found["table"] for found in of_kind.values()), strict=True):
        cells = []
        for found in (row["t2v"] for row in rows):
            low, high = found["interval"]
            cells += [f"{found['R@1']:.1f} ({low:.1f} to {high:.1f})", f"{found['R@5']:.1f} / {found['R@10']:.1f}"]
        lines.append(f"| {rows[0]['name']} | {' | '.join(cells)} |")
    lines += ["", "R@1 of the last row less that of others, in points, with the paired 95 % interval:", ""]
    lines += [f"| less | {' | '.join(of_kind)} |", f"| --- |{' --- |' * len(of_kind)}"]
    for name in next(iter(of_kind.values()))["gains"]:
        gains = (found["gains"][name] for found in of_kind.values())
        cells = [f"{gain:+.1f} ({low:+.1f} to {high:+.1f})" for gain, low, high in gains]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _mixed_lines(noise: Sequence[Values]) -> list[str]:
    """Recall@1 of one vector of video and caption, by the caption's weight and the share of wrong words."""
    lines = ["One vector of video and caption: R@1 text to video, captions / summaries, by the caption's weight:", ""]
    lines.append(f"| weight of the caption | {' | '.join(format(one['share'], '.0%') for one in noise)} |")
    lines.append(f"| --- |{' --- |' * len(noise)}")
    for weight in noise[0]["mixed"][QUERIES[0]]:
        cells = [" / ".join(f"{one['mixed'][kind][weight]:.1f}" for kind in QUERIES) for one in noise]
        lines.append(f"| {weight} | {' | '.join(cells)} |")
    return lines
