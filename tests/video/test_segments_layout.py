"""Ways of cutting, as JSON and back, and the layouts they give."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo import Zoo
from vidembed.video import Cut, NotAVideo, Scenes, VideoTooLarge, Windows, cut_from_dict, cut_to_dict, load_video
from vidembed.video.segments import lay_out

WINDOWS = st.builds(
    lambda length, share: Windows(length, share * (length - 0.001)), st.floats(0.001, 1e6), st.floats(0, 0.99)
)
SCENES = st.builds(
    lambda threshold, shortest, ratio: Scenes(threshold, shortest, ratio * shortest),
    st.floats(1, 1e6),
    st.floats(0.001, 1e6),
    st.floats(2, 1e3),
)


@given(WINDOWS | SCENES)
def test_json_and_back(cut: Cut) -> None:
    value = json.loads(json.dumps(cut_to_dict(cut)))
    assert cut_from_dict(value) == cut
    assert value["kind"] == type(cut).__name__.lower()


def test_the_form_is_as_it_was() -> None:
    """Indexes hold it."""
    assert cut_to_dict(Windows(10.0, 2.0)) == {"kind": "windows", "length": 10.0, "overlap": 2.0}
    assert cut_to_dict(Scenes()) == {"kind": "scenes", "threshold": 3.0, "min_length_s": 2.0, "max_length_s": 90.0}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "windows",
        {},
        {"kind": "shots"},
        {"kind": ["windows"]},
        {"kind": "windows"},
        {"kind": "windows", "length": 10.0},
        {"kind": "windows", "length": 10.0, "overlap": 0.0, "more": 1},
        {"kind": "windows", "length": "10", "overlap": 0.0},
        {"kind": "windows", "length": True, "overlap": 0.0},
        {"kind": "windows", "length": 1.0, "overlap": 1.0},
        {"kind": "scenes", "length": 1.0, "overlap": 0.5},
        {"kind": "scenes", "threshold": 3.0, "min_length_s": -1.0, "max_length_s": 90.0},
    ],
)
def test_what_is_no_cut(value: Any) -> None:
    with pytest.raises(ValueError, match=r"cut:|overlap|Scenes"):
        cut_from_dict(value)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "live.mkv", "vfr.mkv", "long_audio.mkv", "one.gif"])
def test_layouts(zoo: Zoo, name: str) -> None:
    path = zoo.path(name)
    duration = lay_out(path, None).duration
    assert duration == pytest.approx(zoo[name].duration, abs=0.05)
    assert duration == pytest.approx(load_video(path).duration, abs=0.05)
    whole, windows = lay_out(path, None), lay_out(str(path), Windows(1.0, 0.5))
    assert whole.duration == windows.duration == duration
    assert whole.segments == [(0.0, round(duration, 6))]
    assert windows.segments == Windows(1.0, 0.5).split(duration)


def test_scenes(zoo: Zoo) -> None:
    pytest.importorskip("scenedetect")
    layout = lay_out(zoo.path("long_gop.mp4"), Scenes(max_length_s=4))
    assert layout.duration == pytest.approx(10.0)
    assert len(layout.segments) >= 3
    assert layout.segments[-1][1] == layout.duration


def test_a_file_that_cannot_be_cut(zoo: Zoo, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_bytes(b"text")
    for cut in (None, Windows(1.0)):
        with pytest.raises(NotAVideo):
            lay_out(tmp_path / "text.mp4", cut)
    monkeypatch.setattr("vidembed.video.segments.MAX_WINDOWS", 10)
    with pytest.raises(VideoTooLarge, match=r"long_gop\.mp4: .*over 10 segments.*cut"):
        lay_out(zoo.path("long_gop.mp4"), Windows(0.5))
