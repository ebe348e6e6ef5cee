"""What all readers share: the split, the counts, missing videos, and the notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.minis import MSRVTT_ROWS, msrvtt, owned, small, touch, write_json
from vidembed.errors import AnnotationError
from vidembed.evaluation import BENCHMARKS, dataset_files, read_benchmark

VIDEOS = ("video9770.mp4", "video9771.mp4", "video7020.mp4")


def test_names() -> None:
    assert BENCHMARKS == ("msrvtt", "msvd", "vatex", "didemo", "activitynet", "custom")
    with pytest.raises(ValueError, match="name='coco': expected one of msrvtt, msvd"):
        read_benchmark("coco", annotations="a", videos="b")
    with pytest.raises(ValueError, match="videos: needed for 'vatex'"):
        read_benchmark("vatex", annotations="a")


class TestCounts:
    def test_the_published_ones_leave_no_note(self, tmp_path: Path) -> None:
        rows = [(f"ret{n}", f"msr{n}", f"video{n}", f"caption {n}") for n in range(1000)]
        got = read_benchmark(
            "msrvtt",
            annotations=msrvtt(tmp_path, rows),
            videos=touch(tmp_path / "v", *(f"video{n}.mp4" for n in range(1000))),
        )
        assert (len(got.videos), len(got.texts), got.notes, got.missing) == (1000, 1000, (), ())
        assert np.array_equal(got.positives, np.eye(1000, dtype=bool))

    def test_others_stop_unless_allowed(self, tmp_path: Path) -> None:
        file, videos = msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS)
        with pytest.raises(AnnotationError, match=r"test.csv: got 3 videos and 3 texts, expected 1000 and 1000.*False"):
            read_benchmark("msrvtt", annotations=file, videos=videos)
        (note,) = small("msrvtt", file, videos).notes
        assert "3 videos and 3 texts, where the published split has 1000 and 1000" in note


class TestMissing:
    def test_stops_and_says_how_to_go_on(self, tmp_path: Path) -> None:
        file, videos = msrvtt(tmp_path), touch(tmp_path / "v", VIDEOS[1])
        with pytest.raises(AnnotationError, match=r"2 of 3 videos.*'video9770', 'video7020'.*allow_missing=True"):
            small("msrvtt", file, videos)
        got = small("msrvtt", file, videos, allow_missing=True)
        assert owned(got) == [("a little girl, does gymnastics", "video9771")]
        assert got.missing == ("video9770", "video7020")
        assert "2 of 3 videos have no file and are left out with their 2 texts" in got.notes[1]

    def test_nothing_at_all_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(AnnotationError, match=r"3 of 3 videos.*must have the id as its name"):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", "other.mp4"), allow_missing=True)

    def test_many_are_counted(self, tmp_path: Path) -> None:
        rows = [("k", "v", f"video{n}", "text") for n in range(9)]
        with pytest.raises(AnnotationError, match=r"8 of 9 videos .*'video5' and 3 more"):
            small("msrvtt", msrvtt(tmp_path, rows), touch(tmp_path / "v", "video0.mp4"))

    def test_counts_are_those_of_the_annotations(self, tmp_path: Path) -> None:
        """A file too few is no reason to say that the annotations are others."""
        rows = [(f"ret{n}", f"msr{n}", f"video{n}", f"caption {n}") for n in range(1000)]
        videos = touch(tmp_path / "v", *(f"video{n}.mp4" for n in range(999)))
        got = read_benchmark("msrvtt", annotations=msrvtt(tmp_path, rows), videos=videos, allow_missing=True)
        assert (len(got.texts), got.missing, len(got.notes)) == (999, ("video999",), 1)


class TestSplit:
    def test_restricts_and_orders(self, tmp_path: Path) -> None:
        file, videos = msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS)
        (tmp_path / "ids.txt").write_text("\ufeffvideo7020\r\n\n video9770 \n", encoding="utf-8")
        write_json(tmp_path / "ids.json", ["video7020", "video9770"])
        np.save(tmp_path / "ids.npy", np.array(["video7020", "video9770"]))
        (tmp_path / "test_list.txt").write_text("video7020\nvideo9770\n")
        for split in ("ids.txt", "ids.json", "ids.npy", ""):
            assert small("msrvtt", file, videos, split=tmp_path / split).video_ids == ("video7020", "video9770")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("ids.txt", b"video7020\nvideo1\nvideo2\n", r"no captions for 2 of 3 videos of the split: 'video1', 'vid"),
            ("ids.txt", b"a\nb\na\n", r"line 3: 'a' is already at line 1"),
            ("ids.txt", b"\n \n", "no ids"),
            ("ids.txt", b"", "is empty"),
            ("ids.txt", b"../../etc/passwd\n", "not a name"),
            ("ids.txt", b"a\xff\n", "line 1: not UTF-8"),
            ("ids.json", b'{"a": 1}', "expected a list of video ids, got dict"),
            ("ids.json", b'["a", 3]', "entry 2: video id=3: expected a string"),
            ("ids.json", b'["a", "a"]', "entry 2: 'a' is already at entry 1"),
            ("ids.npy", b"\x80\x04K\x01.", "not a numpy array of strings"),
            ("ids.pkl", b"\x80\x04K\x01.", "is a pickle"),
        ],
    )
    def test_bad_lists(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnnotationError, match=message):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS), split=tmp_path / name)

    @pytest.mark.parametrize("array", [np.array([1, 2]), np.array([["a"]]), np.array("a")])
    def test_arrays_of_something_else(self, tmp_path: Path, array: Any) -> None:
        np.save(tmp_path / "ids.npy", array)
        with pytest.raises(AnnotationError, match="expected a numpy array of strings, one axis, got shape"):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS), split=tmp_path / "ids.npy")

    def test_arrays_of_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "ids.npy", np.array(["video7020"], dtype=object), allow_pickle=True)
        with pytest.raises(AnnotationError, match="not a numpy array of strings"):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS), split=tmp_path / "ids.npy")

    def test_strings_that_take_no_place(self, tmp_path: Path) -> None:
        header = {"descr": "<U0", "fortran_order": False, "shape": (10**12,)}  # a list of them would fill the memory
        with (tmp_path / "ids.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(AnnotationError, match="expected a numpy array of strings, one axis, got shape"):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS), split=tmp_path / "ids.npy")

    def test_a_header_that_claims_too_much(self, tmp_path: Path) -> None:
        np.save(tmp_path / "ids.npy", np.array(["video7020"]))
        raw = (tmp_path / "ids.npy").read_bytes()
        (tmp_path / "ids.npy").write_bytes(raw.replace(b"(1,), }" + b" " * 12, b"(1000000000000,), }"))
        assert b"1000000000000" in (tmp_path / "ids.npy").read_bytes()
        with pytest.raises(AnnotationError, match="not a numpy array of strings"):
            small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS), split=tmp_path / "ids.npy")


class TestFile:
    def test_a_folder_or_the_file(self, tmp_path: Path) -> None:
        file, videos = msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS)
        assert owned(small("msrvtt", tmp_path, videos)) == owned(small("msrvtt", file, videos))

    def test_a_folder_without_it(self, tmp_path: Path) -> None:
        touch(tmp_path, "other.csv")
        with pytest.raises(
            AnnotationError, match=r"contain the captions of MSR-VTT.*JSFUSION_test.csv, found 'other.csv'"
        ):
            small("msrvtt", tmp_path, tmp_path)
        (tmp_path / "other.csv").unlink()
        with pytest.raises(AnnotationError, match="found an empty folder"):
            small("msrvtt", tmp_path, tmp_path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(AnnotationError, match=r"none.csv: no such file"):
            small("msrvtt", tmp_path / "none.csv", tmp_path)

    def test_size_is_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file, videos = msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS)
        monkeypatch.setattr(dataset_files, "MAX_ANNOTATION_BYTES", file.stat().st_size)
        small("msrvtt", file, videos)
        monkeypatch.setattr(dataset_files, "MAX_ANNOTATION_BYTES", file.stat().st_size - 1)
        with pytest.raises(AnnotationError, match="bytes, more than"):
            small("msrvtt", file, videos)

    def test_texts_of_several_videos_are_noted(self, tmp_path: Path) -> None:
        rows = [("k", "v", f"video{n}", text) for n, text in enumerate(["same", "same", "other"])]
        videos = touch(tmp_path / "v", *(f"video{n}.mp4" for n in range(3)))
        got = small("msrvtt", msrvtt(tmp_path, rows), videos)
        assert got.owners == ((0,), (1,), (2,))
        assert "2 of 3 texts belong to several videos" in got.notes[-1]


class TestMsrvtt:
    def test_by_hand(self, tmp_path: Path) -> None:
        got = small("msrvtt", msrvtt(tmp_path), touch(tmp_path / "v", *VIDEOS))
        assert owned(got) == [(sentence, name) for _, _, name, sentence in MSRVTT_ROWS]
        assert [path.name for path in got.videos] == list(VIDEOS)
        assert (got.name, got.title, got.split) == ("msrvtt", "MSR-VTT 1k-A", "test 1k-A")

    def test_a_video_twice(self, tmp_path: Path) -> None:
        rows = [*MSRVTT_ROWS, MSRVTT_ROWS[1]]
        with pytest.raises(AnnotationError, match=r"line 5: 'video9771' is already at line 3"):
            small("msrvtt", msrvtt(tmp_path, rows), tmp_path)

    def test_a_video_without_a_caption(self, tmp_path: Path) -> None:
        rows = [MSRVTT_ROWS[0], ("k", "v", "video1", " ")]
        with pytest.raises(AnnotationError, match="only blank captions for 1 videos: 'video1'"):
            small("msrvtt", msrvtt(tmp_path, rows), tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"key;vid_key;video_id;sentence\nret0;msr1;video1;a\n", "no column 'key' and .*with commas between them"),
            (b"video,caption\na.mp4,words\n", "no column 'key' and 'vid_key' and 'video_id' and 'sentence'"),
            (b"key,vid_key,video_id,sentence\n", "no rows below the header"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,video1,a, b\n", "line 2: 5 cells under a header of 4"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,../video1,a\n", r"line 2: video id '../video1' is not a name"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,a\\b,a\n", "not a name"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,..,a\n", "not a name"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,,a\n", "line 2: video id is empty"),
            (b"key,vid_key,video_id,sentence\nret0,msr1," + b"v" * 256 + b",a\n", "256 characters, more than 255"),
            (b"key,vid_key,video_id,sentence\nret0,msr1,video1,\xff\n", "line 2: not UTF-8"),
            (b"\x00\x00\x00\x18ftypmp42\x00\xff\xff", "not UTF-8"),
            (b"", "is empty"),
        ],
    )
    def test_other_files(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(AnnotationError, match=message):
            small("msrvtt", tmp_path / "a.csv", tmp_path)
