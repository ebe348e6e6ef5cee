"""What adapters share, with stand-ins for models: the adapters' own tests use real ones."""

from __future__ import annotations

import re
import uuid
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.clips import moving_square, write_video
from vidembed import ModelOptions
from vidembed.adapters import (
    Gate,
    RankFields,
    check_ready,
    fuses,
    load_encoder,
    load_reranker,
    lock_of,
    rank_documents,
    read_video_file,
    stable_id,
    storable,
    to_floats,
    warn_of_default,
)
from vidembed.errors import NotAVideo, NotAVideoError, VideoUriError
from vidembed.uri import video_uri
from vidembed.video.segments import Windows


class Weights:
    """Stands in for a module: it can be referred to weakly."""


class Reranker:
    """Scores the video ``v1`` 0.1, ``v2`` 0.2 and so on; ``bad`` cannot be read."""

    backbone = None
    can_fuse = False

    def rank(self, query: Any, documents: list[str], *, on_error: str, **how: Any) -> list[dict[str, Any]]:
        self.asked = (query, documents, how)
        if on_error == "raise" and "bad" in documents:
            raise NotAVideo("bad", "no video")
        found = [(place, int(name[1:]) / 10) for place, name in enumerate(documents) if name != "bad"]
        return [{"corpus_id": place, "score": score} for place, score in sorted(found, key=lambda one: -one[1])]


def test_models_that_share_weights_share_a_lock() -> None:
    weights = Weights()
    one, other = (SimpleNamespace(backbone=SimpleNamespace(model=weights)) for _ in range(2))
    assert lock_of(one) is lock_of(other)
    alone = Reranker()
    assert lock_of(alone) is lock_of(alone)
    assert lock_of(alone) is not lock_of(Reranker())


def test_the_warning_names_the_line_outside_the_adapter() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_default("vidembed/shapes", packages=("some_adapter",))
    assert [Path(each.filename).name for each in caught] == ["test_adapters.py"]
    assert "vidembed/shapes knows only generated videos" in str(caught[0].message)


def test_a_model_that_is_given_loaded() -> None:
    check_ready("reranker", Reranker(), methods=("rank",), given=())
    with pytest.raises(
        ValueError, match=r"encoder: got str, which has no encode_stream\(\); expected a vidembed model"
    ):
        check_ready("encoder", "vidembed/shapes", methods=("encode_stream",), given=())
    with pytest.raises(ValueError, match="device, layer: encoder is already loaded"):
        check_ready("encoder", Reranker(), methods=("rank",), given=["layer", "device"])


@pytest.mark.parametrize(
    ("load", "argument", "field"),
    [
        (load_encoder, "layer", "layer"),
        (load_encoder, "truncate_dim", "dimensions"),
        (load_encoder, "allow_url", "allowed_schemes"),
        (load_reranker, "device", "device"),
    ],
)
def test_rejects_what_has_a_field_of_its_own(load: Any, argument: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"model_kwargs: '{argument}' is set by the field '{field}'"):
        load("no/such/model", allow_url=False, model_kwargs={argument: 1})


@pytest.mark.parametrize("load", [load_encoder, load_reranker])
def test_model_options_beside_other_fields(load: Any) -> None:
    options = ModelOptions(dtype="bfloat16", device="cpu")
    with pytest.raises(ValueError, match=r"device: got 'cpu', and model_options .*; give one of them"):
        load("no/such/model", allow_url=False, device="cpu", model_options=options)
    with pytest.raises(ValueError, match="model_kwargs: 'model_kwargs' is set by the field 'model_options'"):
        load("no/such/model", allow_url=False, model_options=options, model_kwargs={"model_kwargs": {}})
    for given in ({"model_options": options}, {"device": "cpu", "model_options": ModelOptions(dtype="bfloat16")}):
        model = load("vidembed/shapes" + ("-rerank" if load is load_reranker else ""), allow_url=False, **given)
        assert str(model.dtype) == "torch.bfloat16"
        assert model.device.type == "cpu"


def test_floats_are_pythons_own_and_at_length_one_where_cut() -> None:
    vector = np.array([3.0, 4.0], dtype=np.float32)
    assert to_floats(vector, shortened=False) == [3.0, 4.0]
    found = to_floats(vector, shortened=True)
    assert found == pytest.approx([0.6, 0.8])
    assert {type(number) for number in found} == {float}
    assert to_floats(np.zeros(2, dtype=np.float32), shortened=True) == [0.0, 0.0]


class TestGate:
    def test_videos_and_words(self, tmp_path: Path) -> None:
        uri = video_uri(tmp_path / "a.mp4", 1, 2)
        found = Gate().video_in(f"\n {uri}\n")
        assert found is not None
        assert (found.source, found.start, found.end) == (tmp_path / "a.mp4", 1, 2)
        assert Gate().video_in(f"see {uri}") is None
        with pytest.raises(VideoUriError, match=r"texts\[1\].*VideoLoader"):
            Gate().document_in(str(tmp_path / "a.mp4"), name="texts[1]", loader="VideoLoader")

    def test_what_is_not_allowed(self, tmp_path: Path) -> None:
        with pytest.raises(VideoUriError, match="outside root"):
            Gate(root=tmp_path / "else").video_in(video_uri(tmp_path / "a.mp4"))
        with pytest.raises(VideoUriError, match="not allowed"):
            Gate().video_in("video+https://example.org/a.mp4")
        with pytest.raises(ValidationError, match="'ftp': allowed are 'file', 'http', 'https'"):
            Gate(allowed_schemes=("ftp",))

    def test_addresses(self) -> None:
        assert not Gate().wants_urls
        gate = Gate(allowed_schemes=("file", "https"))
        assert gate.wants_urls
        gate.check_urls("encoder", SimpleNamespace(allow_url=True))
        with pytest.raises(ValueError, match="encoder was made with allow_url=False"):
            gate.check_urls("encoder", SimpleNamespace(allow_url=False))


class TestRanking:
    def test_order_scores_and_what_is_left_out(self) -> None:
        reranker = Reranker()
        documents = ["v1", "words", "bad", "v3", "v2"]
        found = rank_documents(
            reranker,
            "a query",
            documents,
            lambda text: None if text == "words" else text,
            RankFields(min_score=0.15, on_error="skip", not_video="keep"),
            name_of=lambda place, text: f"documents[{place}]: {text}",
        )
        assert found.ranked == [("v3", {"score": 0.3}), ("v2", {"score": 0.2})]
        assert (found.unread, found.others) == (["bad"], ["words"])
        query, asked, how = reranker.asked
        assert (query, asked) == ({"text": "a query"}, ["v1", "bad", "v3", "v2"])
        assert how["first_stage"] is None

    def test_errors(self) -> None:
        def rank(documents: list[str]) -> Any:
            video_of = {"v1": "v1", "bad": "bad"}.get
            return rank_documents(Reranker(), "x", documents, video_of, RankFields(), name_of="{}: {}".format)

        with pytest.raises(NotAVideoError, match="1: words"):
            rank(["v1", "words"])
        with pytest.raises(NotAVideo):
            rank(["v1", "bad"])
        assert rank([]).ranked == []

    def test_fusion_is_used_where_it_is_possible(self) -> None:
        fusing = SimpleNamespace(can_fuse=True)
        assert [fuses(fusing, asked) for asked in (None, True, False)] == [True, True, False]
        assert fuses(Reranker(), None) is False
        with pytest.raises(ValueError, match="fuse: this reranker has no fusion"):
            fuses(Reranker(), True)


def test_ids_are_uuids_of_the_text() -> None:
    assert stable_id("a") == str(uuid.uuid5(uuid.NAMESPACE_URL, "a"))
    assert stable_id("a", "b") == str(uuid.uuid5(uuid.UUID(stable_id("a")), "b"))
    assert len({stable_id("a"), stable_id("b"), stable_id("a", "b"), stable_id("ab")}) == 4


def test_names_that_are_not_utf8_are_escaped() -> None:
    assert storable("caf\udce9.mp4") == "caf\\xe9.mp4"
    assert storable(Path("café.mp4")) == "café.mp4"


def test_a_file_as_loaders_need_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(20))
    whole = read_video_file(path)
    assert re.fullmatch("[0-9a-f]{64}", whole.fingerprint)
    assert [tuple(times) for times in whole.segments] == [(whole.start, pytest.approx(whole.duration))]
    parts = read_video_file(path, Windows(0.5))
    assert (parts.fingerprint, parts.duration) == (whole.fingerprint, whole.duration)
    assert len(parts.segments) > 1
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(NotAVideo):
        read_video_file(tmp_path / "b.mp4")
