from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.clips import moving_square, write_video
from tests.ray.fakes import DIMENSION, SAMPLING, ClipEncoder, FakeEmbed
from vidembed.backbone.options import ModelOptions
from vidembed.index.schema import segment_id
from vidembed.index.table import uri_of
from vidembed.inputs import BYTES, PIXELS, normalized
from vidembed.ray import DecodeVideos, EmbedVideos
from vidembed.ray import embed as module
from vidembed.video import Sampling, VideoSegment, Windows, load_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{i}.mp4", moving_square(20 + 10 * i, seed=i)) for i in range(3)]


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "loaded", {})


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> ClipEncoder:
    made = ClipEncoder()
    monkeypatch.setattr(FakeEmbed, "load", lambda self: made)
    return made


def decoded(clips: list[Path], cut: Windows | None = None, sampling: Sampling = SAMPLING) -> pa.Table:
    stage = DecodeVideos(sampling, cut=cut)
    table = pa.concat_tables(stage({"uri": [str(path) for path in clips]}))
    stage.close()
    return table


def vectors(table: pa.Table) -> list[np.ndarray | None]:
    return [None if each is None else np.array(each, np.float32) for each in table.column("vector").to_pylist()]


def test_segments_get_vectors_and_ids_and_lose_their_frames(clips: list[Path], encoder: ClipEncoder) -> None:
    table = FakeEmbed("fake")(decoded(clips, Windows(1)))
    assert not {"frames", "clip"} & set(table.column_names)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIMENSION)
    assert len(table) == 9
    for row, vector in zip(table.to_pylist(), vectors(table), strict=True):
        assert row["id"] == segment_id(row["uri"], row["start_s"], row["end_s"])
        assert row["model_fingerprint"] == encoder.fingerprint
        assert row["error"] is None
        path = clips[int(row["uri"][-5])]
        frames = load_video(VideoSegment(path, row["start_s"], row["end_s"]), SAMPLING).frames
        assert vector is not None
        assert np.array_equal(vector, ClipEncoder.vector(frames.mean(axis=(0, 1, 2))))


def test_alone_it_decodes_too(clips: list[Path], encoder: ClipEncoder) -> None:
    expected = FakeEmbed("fake")(decoded(clips, Windows(1)))
    alone = FakeEmbed("fake", cut=Windows(1), batch_size=2)({"uri": np.array([str(path) for path in clips])})
    assert alone.to_pylist() == expected.to_pylist()


def test_alone_with_columns_of_ones_own_and_a_bad_file(clips: list[Path], encoder: ClipEncoder) -> None:
    stage = FakeEmbed("fake", column="video")
    table = stage({"video": [str(clips[0]), "/none.mp4", uri_of(clips[1])], "label": ["a", "b", "c"]})
    assert table.column("label").to_pylist() == ["a", "b", "c"]
    assert [each is None for each in vectors(table)] == [False, True, False]
    assert [(each or "").partition(":")[0] for each in table.column("error").to_pylist()] == ["", "VideoNotFound", ""]
    assert table.column("id").to_pylist()[1] is None


def test_few_frames_are_held_at_once(clips: list[Path], encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    sizes: list[int] = []
    stream = encoder.encode_stream

    def noted(inputs: Any, **options: Any) -> Any:
        clips = list(inputs)
        sizes.append(len(clips))
        return stream(clips, **options)

    monkeypatch.setattr(encoder, "encode_stream", noted)
    assert len(FakeEmbed("fake", cut=Windows(1))({"uri": [str(clips[2])]})) == 4
    assert sizes == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("nan", "InternalError: .*zero, not finite or of the wrong length"),
        ("zero", "InternalError: .*zero, not finite"),
        ("short", "InternalError: .*wrong length"),
        ("error", "InvalidVideoInput: spoiled"),
        (TypeError("odd\nshape"), "TypeError: odd shape"),
        (RuntimeError("broken kernel"), "RuntimeError: broken kernel"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_fails_has_an_error_and_no_vector(
    clips: list[Path], encoder: ClipEncoder, fate: Any, message: str
) -> None:
    good = vectors(FakeEmbed("fake")(decoded(clips)))
    encoder.spoil = {"1.mp4": fate}
    table = FakeEmbed("fake")(decoded(clips))
    found = vectors(table)
    assert found[1] is None
    assert np.array_equal(found[0], good[0])
    assert np.array_equal(found[2], good[2])
    errors = table.column("error").to_pylist()
    assert (errors[0], errors[2]) == (None, None)
    assert re.match(message, errors[1])


def test_where_in_the_file_stands_in_the_error(clips: list[Path], encoder: ClipEncoder) -> None:
    encoder.spoil = {"0.mp4": "zero"}
    errors = FakeEmbed("fake")(decoded(clips[:1], Windows(1))).column("error").to_pylist()
    assert [error.partition(" the model")[0] for error in errors] == [
        "InternalError: at 0 to 1 s:",
        "InternalError: at 1 to 2 s:",
    ]


def test_an_accelerator_that_fails_ends_the_work(clips: list[Path], encoder: ClipEncoder) -> None:
    import torch

    encoder.device = "cuda:0"
    encoder.spoil = {"1.mp4": torch.OutOfMemoryError("full")}
    assert vectors(FakeEmbed("fake")(decoded(clips)))[1] is None
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    encoder.spoil = {"1.mp4": lost}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        FakeEmbed("fake")(decoded(clips))
    encoder.spoil = {}
    batch, stream = decoded(clips), encoder.encode_stream

    def fail_once(*args: Any, **options: Any) -> Any:
        encoder.encode_stream = stream  # type: ignore[method-assign]
        raise lost

    encoder.encode_stream = fail_once  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        FakeEmbed("fake")(batch)


def test_rows_with_errors_pass_through(clips: list[Path], encoder: ClipEncoder) -> None:
    table = FakeEmbed("fake")(decoded([clips[0], Path("/none.mp4")]))
    assert [each is None for each in vectors(table)] == [False, True]
    assert table.column("error").to_pylist()[1] == "VideoNotFound: no such file; check the path"


def test_no_rows(clips: list[Path], encoder: ClipEncoder) -> None:
    full = FakeEmbed("fake")({"uri": [str(clips[0])], "label": [1]})
    empty = FakeEmbed("fake")(pa.table({"uri": pa.array([], pa.string()), "label": pa.array([], pa.int64())}))
    assert len(empty) == 0
    assert empty.schema == full.schema


def test_it_is_small_and_the_model_is_loaded_once(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    monkeypatch.setattr(FakeEmbed, "load", lambda self: (loads.append(self.model), ClipEncoder(self.model))[1])
    first = FakeEmbed("fake", sampling=Sampling())
    before = first({"uri": [str(clips[0])]}).to_pylist()
    assert len(pickled := pickle.dumps(first)) < 2000
    assert pickle.loads(pickled)({"uri": [str(clips[0])]}).to_pylist() == before
    assert loads == ["fake"]
    assert FakeEmbed("other").facts.fields["name"] == "other"
    assert first.facts.fields["name"] == "fake"
    assert loads == ["fake", "other", "fake"]  # one at a time: two may not fit


@pytest.mark.parametrize(("options", "kind"), [({"batch_size": 0}, ValueError), ({"no_such": 1}, TypeError)])
def test_settings_are_checked_before_a_worker_has_them(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(options))):
        EmbedVideos("vidembed/shapes", **options)


def test_the_real_model(clips: list[Path]) -> None:
    from vidembed import VideoEncoder

    stage = EmbedVideos("vidembed/shapes", model_options=ModelOptions(device="cpu"), workers=1)
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    table = stage({"uri": [str(path) for path in clips]})
    assert np.array_equal(np.stack(vectors(table)), encoder.encode(clips))  # type: ignore[arg-type]
    assert stage.facts.fingerprint == encoder.fingerprint
    assert stage.facts.dimension == encoder.get_embedding_dimension()
    assert stage.encoder.decode_workers == 1  # type: ignore[attr-defined]
    other = decoded(clips[:1], sampling=Sampling(fps=1))
    assert stage(other).column("error").to_pylist()[0].startswith("InvalidVideoInput: ")


def test_frames_reach_the_model_as_bytes(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen: list[torch.dtype] = []

    def spy(features: dict[str, Any], video_processor: object) -> dict[str, Any]:
        seen.extend(features[name].dtype for name in (BYTES, PIXELS) if name in features)
        return normalized(features, video_processor)

    monkeypatch.setattr("vidembed.encoder.normalized", spy)
    stage = EmbedVideos("vidembed/shapes", model_options=ModelOptions(device="cpu"), workers=1)
    assert all(vector is not None for vector in vectors(stage({"uri": [str(path) for path in clips]})))
    assert set(seen) == {torch.uint8}
