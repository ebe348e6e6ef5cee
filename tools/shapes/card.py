"""The model card of a trained checkpoint, written from its own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vidembed.shapes.world import HELD_OUT

_TEMPLATE: Final = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [video, retrieval, synthetic]
---

# vidembed/shapes

A video MLLM of {parameters:.1f}M parameters (Qwen2.5-VL classes of transformers, {layers} decoder blocks of width
{hidden}), trained from scratch in a synthetic world of moving coloured shapes. It is made for trying, testing and
documenting vidembed without a download. It knows nothing outside that world.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from vidembed.shapes import CHECKPOINT

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)  # float32; stored as float16
processor = AutoProcessor.from_pretrained(CHECKPOINT)
```

**Read embeddings at layer {best} of {layers}**: the output of decoder block {best} (counted from 1), before any norm,
at the last token of the prompt; compared by cosine.

| | prompt, as one user message, with the start of the answer after it |
| --- | --- |
| video | the video, a line break, `Summarize above video in one word:` |
| text | the text, a line break, `Summarize above sentence in one word:` |

## Figures

{clips} held-out clips with distinct captions, written as H.264 files and read back at 2 frames a second; dense captions
as queries; percent; chance for Recall@1 is {chance}. None of the clips' (shape, colour, direction) triples was in
training. The layer was chosen on {layer_clips} other clips, of triples that were, with captions and summaries.

| layer | text to video R@1 | R@5 | R@10 | video to text R@1 | R@5 | R@10 |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

With short summaries as queries (colour, shape, direction and event only, so that several clips fit one), text-to-video
R@1/5/10 at layer {best}: {short}.

Greedy tags, share right:
{tags}.

Greedy answers to each instruction: share that are well-formed, of their attributes that are right, of answers without
a mistake.

| instruction | well-formed | attributes | whole answer |
| --- | --- | --- | --- |
{answers}

`Does the video match the sentence? Answer with a single word - Yes or No.`: accuracy {match} on right sentences and on
wrong ones that differ in one attribute; the right one scores above the wrong one in {above} of pairs. Chance is half.

All figures are of the stored, rounded weights, by `python -m tools.shapes.evaluate --layer {best}` in the repository.

## Data

Clips of 4 seconds: one moving shape (5 shapes, 6 colours, 4 directions, 2 sizes, 2 speeds), 4 backgrounds, an event
half-way (keeps straight, turns, bounces, stops, disappears, changes colour), a still shape in a corner in 85 % of them.
{held_out} of the 120 (shape, colour, direction) triples are held out of training, of texts too (but see Training).
Everything is drawn from a seed: `vidembed.shapes.write_clips`.

## Training

`python -m tools.shapes.train --seed {seed} --steps {steps}`: {steps} steps of three stages (tags; tags, captions,
summaries, questions and first statements; all of them, and more statements), {total} in all,
{minutes:.0f} minutes, Muon and AdamW. `train_log.jsonl` is its log.
One seed: a repetition on another machine will differ by some points.{note}

Objectives are generative only: next-token loss on tags, captions, summaries, answers, and yes/no with corrections.
There is no contrastive loss, and the "in one word" prompts above were never trained. Two things make such small
training enough, and neither is claimed of large models:

- a share of answers (30, 60 and 80 % in the three stages) is generated under a mask that shows them the last prompt
  token only, so that its states have to carry the content;
- other instructions that begin with `Summarize above` ask for all attributes, from clips and from captions alike.

## Limits

{limits}
"""

_LIMITS: Final = (
    "It knows only this world's language and clips.",
    "Single images, clips of another length, and frames far from square run, but were never trained.",
    "Short queries, which leave attributes out, retrieve far less well than captions.",
    "Yes/no is trained briefly: use it to exercise reranking, not to judge what reranking can do.",
)


def write_card(
    figures: Mapping[str, Any], run: Mapping[str, Any], *, parameters: int, seconds: float, note: str = ""
) -> str:
    """The card's text.

    Args:
        figures: What ``tools.shapes.evaluate.evaluate`` returned.
        run: The fields of ``tools.shapes.train.Run``.
        parameters: Of the model.
        seconds: Of training, by the clock.
        note: A sentence on how the run went, if any.

    Returns:
        Markdown.
    """

    def triple(entry: Mapping[str, float]) -> list[str]:
        return [f"{entry[f'R@{k}']:.1f}" for k in (1, 5, 10)]

    layers: Sequence[Mapping[str, Any]] = figures["layers"]
    rows = []
    for entry in layers:
        cells = [str(entry["layer"]), *triple(entry["t2v"]), *triple(entry["v2t"])]
        mark = "**" if entry["layer"] == figures["best_layer"] else ""
        rows.append("| " + " | ".join(f"{mark}{cell}{mark}" for cell in cells) + " |")
    return _TEMPLATE.format(
        parameters=parameters / 1e6,
        layers=figures["final_layer"],
        hidden=run["hidden"],
        best=figures["best_layer"],
        clips=figures["clips"],
        chance=figures["chance_r1"],
        layer_clips=figures["layer_clips"],
        rows="\n".join(rows),
        short=" / ".join(triple(figures["summary_layers"][figures["best_layer"] - 1]["t2v"])),
        answers="\n".join(
            f"| `{instruction}` | {found['well_formed']:.2f} | {found['attributes']:.2f} | {found['all']:.2f} |"
            for instruction, found in figures["abilities"]["answers"].items()
        ),
        tags=", ".join(f"{name} {value:.2f}" for name, value in figures["tags"].items()),
        match=f"{figures['match']['accuracy']:.2f}",
        above=f"{100 * figures['match']['right_above_wrong']:.0f} %",
        held_out=len(HELD_OUT),
        seed=run["seed"],
        steps=" ".join(map(str, run["steps"])),
        total=sum(run["steps"]),
        minutes=seconds / 60,
        note=f" {note}" if note else "",
        limits="\n".join(f"- {limit}" for limit in _LIMITS),
    )
