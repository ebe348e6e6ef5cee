"""Texts generated after prefixes are those of the model's own forward passes on whole prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidembed import VideoFrames, VideoReranker
from vidembed.backbone.generate import generate, generate_plainly, greedy, sampled
from vidembed.backbone.prefix import model_inputs
from vidembed.inputs import Prepared
from vidembed.proof import SENTENCES, probe_video
from vidembed.yes_no import AskOptions, VideoPrompt

STOP = 99  # an id of a word, as those below, and of no media token
# forced on the rows, since the likeliest tokens of random weights repeat; rows end at different steps
GIVEN = [[101, 102, 103, 104], [105, STOP], [106, 107, 108, 109], [110, 111, STOP]]


class Forced:
    """Chooses `GIVEN`, and keeps the logits by row and step."""

    def __init__(self, *, together: bool) -> None:
        self.seen: dict[tuple[int, int], torch.Tensor] = {}
        self._waiting = [[(row, 0) for row in range(len(GIVEN))]] if together else [[(row, 0)] for row in range(4)]

    def __call__(self, logits: torch.Tensor, _step: int) -> torch.Tensor:
        now = self._waiting.pop(0)
        self.seen.update(zip(now, logits, strict=True))
        left = [(row, step + 1) for row, step in now if GIVEN[row][step] != STOP and step + 1 < len(GIVEN[row])]
        if left:
            self._waiting.insert(0, left)
        return torch.tensor([GIVEN[row][step] for row, step in now])


def prefilled(reranker: VideoReranker, *videos: VideoFrames) -> list[VideoPrompt]:
    reader = reranker.reader(sharing=reranker.sharing)
    items = reranker.prepared_videos(list(videos), AskOptions())
    return [reranker.video_prompt(reader, item) for item in items if isinstance(item, Prepared)]


def check_generation(reranker: VideoReranker) -> None:
    """Logits at each step, of two videos with two prompts each, are those of whole prompts."""
    sharing = reranker.sharing
    assert sharing is not None
    videos, reader = prefilled(reranker, probe_video(0, 8), probe_video(1, 3)), reranker.reader()
    rows = [(video, reader.after(video, text)) for video in videos for text in SENTENCES]
    prompts = [(video.prefix, [suffix for one, suffix in rows if one is video]) for video in videos if video.prefix]
    forced = Forced(together=sharing == "packed")
    found = generate(reranker.parts, prompts, stop={STOP}, max_new_tokens=4, sharing=sharing, choose=forced)
    texts = [one for some in found for one in some]
    assert [one.tokens for one in texts] == [[token for token in row if token != STOP] for row in GIVEN]
    assert [one.is_finished for one in texts] == [STOP in row for row in GIVEN]
    assert len(forced.seen) == sum(map(len, GIVEN))
    for (row, step), logits in forced.seen.items():
        video, suffix = rows[row]
        with torch.inference_mode():
            whole = model_inputs(video.followed_by([*suffix, *GIVEN[row][:step]]))
            wanted = reranker[0].model(**whole).logits[0, -1].float()
        assert abs(logits - wanted).max() <= 1e-4
    assert max(float(one.max() - one.min()) for one in forced.seen.values()) > 1e-2


def test_logits_are_those_of_whole_prompts(each_mllm: Path) -> None:
    check_generation(VideoReranker(each_mllm, device="cpu"))


@pytest.mark.parametrize("limit", [1, 6])
def test_the_likeliest_tokens_are_those_of_the_host(reranker: VideoReranker, limit: int) -> None:
    [video] = prefilled(reranker, probe_video())
    assert video.prefix is not None
    suffix = reranker.reader().after(video, SENTENCES[0])
    how = {"stop": [], "max_new_tokens": limit}
    [[found]] = generate(reranker.parts, [(video.prefix, [suffix])], sharing="packed", **how)
    plain = generate_plainly(
        reranker.parts, lambda ids: reranker.reader().read_whole(video.followed_by(ids)), suffix, **how
    )
    whole = model_inputs(video.followed_by(suffix))
    host = reranker[0].model.generate(**whole, max_new_tokens=limit, min_new_tokens=limit, do_sample=False)
    assert found.tokens == plain.tokens == host[0, -limit:].tolist()
    assert not found.is_finished


def test_generation_leaves_the_prefix_as_it_is(reranker: VideoReranker) -> None:
    [video] = prefilled(reranker, probe_video())
    assert video.prefix is not None
    suffix = reranker.reader().after(video, SENTENCES[0])
    how = {"stop": [], "max_new_tokens": 5, "sharing": "packed"}
    first, second = (generate(reranker.parts, [(video.prefix, [suffix])], **how) for _ in range(2))
    assert first[0][0].tokens == second[0][0].tokens
    assert video.prefix.cache.get_seq_length() == video.prefix.tokens


def test_no_prompt_gives_no_text(reranker: VideoReranker) -> None:
    assert generate(reranker.parts, [], stop=[], max_new_tokens=1, sharing="packed") == []


def test_draws_follow_the_seed_and_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])  # (R, V)

    def drawn(temperature: float, seed: int) -> torch.Tensor:
        choose = sampled(temperature, seed)
        return torch.cat([choose(logits, step) for step in range(2000)])

    first = drawn(1.0, 1)
    assert torch.equal(first, drawn(1.0, 1))
    assert not torch.equal(first, drawn(1.0, 2))
    shares = torch.bincount(first, minlength=3) / len(first)
    assert torch.allclose(shares, torch.softmax(logits[0], 0), atol=0.05)
    assert set(drawn(0.01, 0).tolist()) == set(greedy(logits, 0).tolist()) == {2}


def test_a_draw_does_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))  # (R, V)
    together, alone = sampled(1.0, 3), sampled(1.0, 3)
    for step in range(4):
        assert together(logits, step)[2:3].tolist() == alone(logits[2:3], step).tolist()
