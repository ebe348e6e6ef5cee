"""Queries that a model makes of videos without labels: which are drawn, used, and stood in for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed import VideoEncoder
from vidembed.analysis.own_queries import caption_videos, crop, draw_videos, own_texts, read_records
from vidembed.captions import CaptionRecord
from vidembed.errors import AnnotationError, CroppedTexts, TooFewCaptionsError
from vidembed.shapes import write_clips


def record(number: int, **kwargs: Any) -> CaptionRecord:
    texts = {"dense": f"a red square number {number} moves down over a blue ground", "short": f"A square {number}."}
    return CaptionRecord(f"/videos/{number}.mp4", f"{number:064x}", **{"texts": texts, **kwargs})


def records(good: int, unshortened: int = 0, bad: int = 0, failed: int = 0) -> list[CaptionRecord]:
    marks = [
        *({} for _ in range(good)),
        *({"problems": {"short": "not one sentence"}} for _ in range(unshortened)),
        *({"problems": {"dense": "empty"}} for _ in range(bad)),
        *({"texts": {}, "error": "no video"} for _ in range(failed)),
    ]
    return [record(number, **mark) for number, mark in enumerate(marks)]


class TestDrawing:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b.mp4", "a.MKV", "deep/c.webm", ".hidden.mp4", ".git/d.mp4", "notes.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return tmp_path

    def test_visible_videos_to_the_bottom(self, folder: Path) -> None:
        assert [path.name for path in draw_videos(folder, 9)] == ["a.MKV", "b.mp4", "c.webm"]
        assert draw_videos([folder / "deep", folder, folder / "b.mp4"], 9) == draw_videos(folder, 9)
        assert draw_videos([folder / "notes.txt"], 9) == [folder / "notes.txt"]  # named

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        files = [tmp_path / f"{number:02}.mp4" for number in range(40)]
        drawn = draw_videos(files, 10, seed=1)
        assert len(set(drawn)) == 10
        assert drawn == draw_videos(files[::-1], 10, seed=1)
        assert drawn != draw_videos(files, 10, seed=2)

    def test_misuse(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no video found; looked for .*\.mp4"):
            draw_videos(tmp_path, 3)
        with pytest.raises(ValueError, match="clips=0"):
            draw_videos(tmp_path, 0)


class TestUse:
    def test_marked_ones_are_left_out(self, recwarn: pytest.WarningsRecorder) -> None:
        found = own_texts(records(24, 10, 5, 3))
        assert (found.kind, len(found.texts), found.described) == ("short", 24, 42)
        assert not recwarn.list
        queries = found.queries()
        assert list(queries) == ["dense", "short"]
        assert [row.video for row in queries["dense"]] == [row.video for row in queries["short"]]
        assert queries["short"][0].text == "A square 0."
        assert "Of 42 videos that the model described, 24 are used" in found.summary()

    def test_crops_stand_in_where_most_short_texts_are_marked(self) -> None:
        with pytest.warns(CroppedTexts, match="10 of 34 short texts"):
            found = own_texts(records(10, 24, 5))
        assert (found.kind, len(found.texts)) == ("crop", 34)
        for one in found.texts:
            assert one.short in one.dense
            assert 0.3 * len(one.dense.split()) <= len(one.short.split()) <= 0.7 * len(one.dense.split())
        assert list(found.queries()) == ["dense", "crop"]  # never without the captions
        assert "crops of the captions in place of short texts" in found.summary()
        with pytest.warns(CroppedTexts):
            assert own_texts(records(10, 24, 5)) == found
        with pytest.warns(CroppedTexts):
            assert own_texts(records(10, 24, 5), seed=1) != found

    def test_half_of_them_is_enough(self, recwarn: pytest.WarningsRecorder) -> None:
        assert own_texts(records(20, 20)).kind == "short"
        assert not recwarn.list

    def test_too_few(self) -> None:
        with pytest.raises(TooFewCaptionsError, match=r"19 of 23 .* at least 20 .*; 4 times dense: empty.*more videos"):
            own_texts(records(19, 0, 4))
        with pytest.raises(TooFewCaptionsError, match="0 of 0"):
            own_texts([])

    @given(st.text(min_size=1).filter(str.strip), st.integers(0, 99))
    def test_a_crop_is_a_part(self, text: str, seed: int) -> None:
        one_line = " ".join(text.split())
        found = crop(one_line, random.Random(seed))
        assert found
        assert found in one_line

    def test_a_script_without_spaces_is_cropped_too(self) -> None:
        text = "一只棕色的狗在海滩上追着红色的球跑来跑去"
        assert 0.4 * len(text) - 1 <= len(crop(text, random.Random(0))) <= 0.6 * len(text) + 1


class TestFiles:
    def test_paths_are_those_of_the_files_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"")
        file = tmp_path / "captions.jsonl"
        file.write_text(json.dumps({"video": "a.mp4", "dense": "a b c", "short": "a"}))
        [found] = read_records(file)
        assert found.video == str(tmp_path / "a.mp4")
        assert found.texts == {"dense": "a b c", "short": "a"}

    def test_segments_and_missing_videos_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"")
        file = tmp_path / "captions.jsonl"
        file.write_text(json.dumps({"video": "a.mp4", "dense": "a", "start_s": 0, "end_s": 2}))
        with pytest.raises(AnnotationError, match=r"a\.mp4 has times"):
            read_records(file)
        file.write_text(json.dumps({"video": "b.mp4", "dense": "a"}))
        with pytest.raises(AnnotationError, match=r"b\.mp4 is missing"):
            read_records(file)


def test_a_model_describes_files_and_what_fails_is_kept_with_its_error(tmp_path: Path) -> None:
    [(clip, _), (other, _)] = write_clips(tmp_path, 2, "test", 0)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    encoder = VideoEncoder("vidembed/shapes-mllm", layer=-1, prefix=None, device="cpu")
    first, failed, second = caption_videos(encoder, [clip, tmp_path / "broken.mp4", other], show_progress_bar=False)
    assert [Path(one.video) for one in (first, failed, second)] == [clip, tmp_path / "broken.mp4", other]
    assert set(first.texts) == set(second.texts) == {"dense", "short"}
    assert first.content != second.content
    assert failed.error is not None
    assert failed.error.startswith("NotAVideo")
