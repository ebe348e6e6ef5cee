"""The dual-softmax loss against arithmetic done by hand, and cached gradients against plain ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.training.conftest import filled, make_pairs
from vidembed import VideoEncoder
from vidembed.training import CachedDualSoftmaxLoss, DualSoftmaxLoss, LanguageAdapter, LoraSettings, dual_softmax_loss
from vidembed.training.loss import row_keys, same_texts
from vidembed.training.trainer import stand_in_kwargs, tokenize


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def by_hand(scores: list[list[float]], same: set[tuple[int, int]] = frozenset(), softness: float = 1.0) -> float:
    """The formula of the module's docstring, one entry at a time."""
    size = len(scores)
    losses = []
    for transposed in (False, True):
        s = [[scores[j][i] if transposed else scores[i][j] for j in range(size)] for i in range(size)]
        logits = [[0.0] * size for _ in range(size)]
        for j in range(size):
            live = [i for i in range(size) if (i, j) not in same]
            for i, share in zip(live, softmax([s[i][j] / softness for i in live]), strict=True):
                logits[i][j] = s[i][j] * share * len(live)
        for i in range(size):
            live = [j for j in range(size) if (i, j) not in same]
            losses.append(-math.log(softmax([logits[i][j] for j in live])[live.index(i)]))
    return sum(losses) / len(losses)


SCORES = [[2.0, 1.0, -0.5], [0.5, 1.5, 1.0], [0.0, 0.25, 3.0]]


def test_three_by_three_by_hand():
    # captions to summaries, column 0: the softmax of (2, 0.5, 0), so logits[0][0] = 2 * 3 * 0.7361
    assert softmax([2.0, 0.5, 0.0]) == pytest.approx([0.7361, 0.1643, 0.0996], abs=1e-4)
    loss = dual_softmax_loss(torch.tensor(SCORES, dtype=torch.float64))
    assert float(loss) == pytest.approx(by_hand(SCORES), abs=1e-12)
    softer = torch.tensor(SCORES, dtype=torch.float64)
    loss = dual_softmax_loss(softer, prior=softer / 20)
    assert float(loss) == pytest.approx(by_hand(SCORES, softness=20), abs=1e-12)
    assert by_hand(SCORES, softness=20) != pytest.approx(by_hand(SCORES), abs=0.01)


def test_masked_entries_take_no_part():
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    scores = torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)
    loss = dual_softmax_loss(scores, same)
    assert loss.item() == pytest.approx(by_hand(SCORES, {(0, 1), (1, 0)}), abs=1e-12)
    loss.backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[same] == 0).all()
    assert (scores.grad[~same] != 0).all()


def test_uniform_scores_are_those_of_infonce():
    for size in (1, 2, 7):
        loss = dual_softmax_loss(torch.full((size, size), 0.7))
        assert float(loss) == pytest.approx(math.log(size), abs=1e-6)


def test_extreme_scores_stay_finite():
    scores = (1000 * torch.eye(8)).requires_grad_()
    loss = dual_softmax_loss(scores)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        (torch.zeros(2, 3), None, r"square matrix.*\(2, 3\)"),
        (torch.zeros(2, 2), torch.zeros(3, 3, dtype=torch.bool), r"shape \(2, 2\)"),
        (torch.zeros(2, 2), torch.eye(2, dtype=torch.bool), "diagonal"),
    ],
)
def test_bad_matrices(scores, same, message):
    with pytest.raises(ValueError, match=message):
        dual_softmax_loss(scores, same)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_bad_temperature(encoder: VideoEncoder, temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        DualSoftmaxLoss(encoder, temperature)
    with pytest.raises(ValueError, match=f"prior_temperature={temperature}"):
        DualSoftmaxLoss(encoder, prior_temperature=temperature)
    with pytest.raises(ValueError, match="mini_batch_size=0"):
        CachedDualSoftmaxLoss(encoder, mini_batch_size=0)


def features(encoder: VideoEncoder, pairs) -> list[dict[str, Any]]:
    return [
        tokenize(encoder.preprocess, [pair.dense for pair in pairs], stand_in_kwargs(encoder)),
        tokenize(encoder.preprocess, [pair.summary for pair in pairs], {}),
    ]


def gradients(loss, adapter: LanguageAdapter, batch) -> tuple[float, dict[str, torch.Tensor]]:
    adapter.encoder.zero_grad()
    value = loss([dict(feature) for feature in batch], None)
    value.backward()
    return float(value), {name: parameter.grad.clone() for name, parameter in adapter.parameters.items()}


def relative_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    gap = torch.sqrt(sum((a[name] - b[name]).square().sum() for name in a))
    return float(gap / torch.sqrt(sum(value.square().sum() for value in a.values())))


class TestGradientCaching:
    @pytest.mark.parametrize("mini_batch_size", [1, 5, 12, 99])
    def test_gradients_are_those_of_the_whole_batch(self, adapted: LanguageAdapter, mini_batch_size):
        adapted.encoder.train()
        batch = features(adapted.encoder, make_pairs())
        plain = gradients(DualSoftmaxLoss(adapted.encoder), adapted, batch)
        cached = gradients(CachedDualSoftmaxLoss(adapted.encoder, mini_batch_size=mini_batch_size), adapted, batch)
        assert cached[0] == pytest.approx(plain[0], rel=1e-5)
        assert plain[0] > 0.1
        assert relative_gap(plain[1], cached[1]) <= 1e-5

    def test_dropout_is_replayed(self, encoder: VideoEncoder):
        """With one mini-batch a side, the plain loss draws the same masks; the second pass must draw them again."""
        adapter = filled(LanguageAdapter(encoder, LoraSettings(rank=4, alpha=8, dropout=0.3)))
        encoder.train()
        batch = features(encoder, make_pairs())
        found = []
        for loss in (DualSoftmaxLoss(encoder), CachedDualSoftmaxLoss(encoder, mini_batch_size=12)):
            torch.manual_seed(5)
            found.append(gradients(loss, adapter, batch))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
        assert relative_gap(found[0][1], found[1][1]) <= 1e-5
        torch.manual_seed(6)
        other = gradients(CachedDualSoftmaxLoss(encoder, mini_batch_size=12), adapter, batch)
        assert relative_gap(found[0][1], other[1]) > 1e-2  # the masks matter: the comparison above bites

    def test_without_gradients_it_is_the_plain_loss(self, adapted: LanguageAdapter):
        adapted.encoder.eval()
        batch = features(adapted.encoder, make_pairs())
        with torch.no_grad():
            plain, cached = (
                loss([dict(feature) for feature in batch])
                for loss in (
                    DualSoftmaxLoss(adapted.encoder),
                    CachedDualSoftmaxLoss(adapted.encoder, mini_batch_size=5),
                )
            )
        assert float(cached) == pytest.approx(float(plain), rel=1e-5)


class TestDuplicates:
    def test_rows_of_equal_tokens_have_equal_keys(self, encoder: VideoEncoder):
        short = tokenize(encoder.preprocess, ["a red square", "a blue square"], {})
        padded = tokenize(encoder.preprocess, ["a red square", "a red square " * 3, "a red square"], {})
        keys = torch.cat([row_keys(short), row_keys(padded)]).tolist()
        assert keys[0] == keys[2] == keys[4]
        assert len(set(keys)) == 3

    def test_either_side_counts(self):
        keys = torch.tensor([[1, 2, 3, 1], [5, 6, 6, 8]])
        marked = {(int(i), int(j)) for i, j in same_texts(keys).nonzero()}
        assert marked == {(0, 3), (3, 0), (1, 2), (2, 1)}

    @pytest.mark.parametrize("cached", [False, True])
    def test_masked_and_counted(self, adapted: LanguageAdapter, cached):
        pairs = make_pairs(8)
        twice = [*pairs, *pairs[:2]]
        encoder = adapted.encoder.eval()
        loss = CachedDualSoftmaxLoss(encoder, mini_batch_size=3) if cached else DualSoftmaxLoss(encoder)
        loss(features(encoder, pairs))
        assert loss.false_negatives == 0
        value = loss(features(encoder, twice))
        assert loss.false_negatives == 2
        loss(features(encoder, twice))
        assert loss.false_negatives == 4
        dense, summary = (encoder(feature)["sentence_embedding"] for feature in features(encoder, twice))
        cosines = (dense @ summary.T).detach()
        scores = cosines / loss.temperature
        same = torch.zeros(10, 10, dtype=torch.bool)
        same[[0, 1, 8, 9], [8, 9, 0, 1]] = True
        assert float(value) == pytest.approx(
            float(dual_softmax_loss(scores, same, prior=cosines / loss.prior_temperature)), rel=1e-4
        )
        assert abs(float(value) - float(dual_softmax_loss(scores, prior=cosines))) > 0.01

    def test_one_column_is_refused(self, encoder: VideoEncoder):
        with pytest.raises(ValueError, match="got 1 columns"):
            DualSoftmaxLoss(encoder)([features(encoder, make_pairs(2))[0]])
