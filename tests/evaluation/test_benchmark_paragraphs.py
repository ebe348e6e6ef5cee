"""DiDeMo and ActivityNet: one paragraph a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.minis import owned, small, touch, write_json
from vidembed.errors import AnnotationError
from vidembed.evaluation import read_benchmark

BUG, NO_SUFFIX = "26292851@N04_4253489686_265c3c8051.m4v", "10052357@N03_7585070382_5762149bfc."


def moment(video: str, description: str, at: int) -> dict[str, Any]:
    return {
        "num_segments": 6,
        "description": description,
        "dl_link": "https://www.flickr.com/video_download.gne?id=1",
        "times": [[at, at]] * 4,
        "video": video,
        "annotation_id": at,
    }


class TestDidemo:
    MOMENTS = (
        moment(BUG, "someone kicks the bug.", 4),
        moment(NO_SUFFIX, "camera pans left ", 1),
        moment(BUG, "bug first appears", 0),
        moment("other@N00_1_2.mov", "not in the list", 0),
    )

    def test_descriptions_are_joined_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        file = write_json(tmp_path / "test_data.json", self.MOMENTS)
        (tmp_path / "test_list.txt").write_text(f"{NO_SUFFIX}\n{BUG}\n")
        videos = touch(tmp_path / "v", NO_SUFFIX, BUG, "other@N00_1_2.mov")
        wanted = [("camera pans left", NO_SUFFIX), ("someone kicks the bug. bug first appears", BUG)]
        assert owned(small("didemo", tmp_path, videos)) == wanted
        assert owned(small("didemo", file, videos, split=tmp_path)) == wanted
        assert len(small("didemo", file, videos).videos) == 3

    def test_files_that_were_converted(self, tmp_path: Path) -> None:
        file = write_json(tmp_path / "test_data.json", self.MOMENTS[:3])
        videos = touch(tmp_path / "v", BUG.replace(".m4v", ".mp4"), NO_SUFFIX + "mp4")
        assert [path.name for path in small("didemo", file, videos).videos] == [
            BUG.replace(".m4v", ".mp4"),
            NO_SUFFIX + "mp4",
        ]
        touch(videos, BUG)  # the file of that very name goes first
        assert small("didemo", file, videos).videos[0].name == BUG

    def test_two_conversions_of_one(self, tmp_path: Path) -> None:
        file = write_json(tmp_path / "test_data.json", self.MOMENTS[:3])
        videos = touch(tmp_path / "v", NO_SUFFIX, f"{BUG}.mp4", BUG.replace(".m4v", ".mp4"))
        with pytest.raises(AnnotationError, match="has two files"):
            small("didemo", file, videos)

    def test_counts(self, tmp_path: Path) -> None:
        file = write_json(tmp_path / "test_data.json", [moment(f"v{n}.mov", "words", 0) for n in range(1037)])
        with pytest.raises(AnnotationError, match=r"got 1037 videos .*expected 1004.*test_list.txt.*in split"):
            read_benchmark("didemo", annotations=file, videos=tmp_path)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"a": 1}, "expected a list of objects with 'video' and 'description', got dict"),
            ([{"video": BUG, "caption": "a"}], "entry 1: expected a list of objects"),
            (
                [moment(BUG, "a", 0), {**moment(BUG, "a", 0), "description": 3}],
                "entry 2: description=3: expected a str",
            ),
            ([moment("../a.mov", "a", 0)], "entry 1: .*not a name"),
            ([moment(BUG, " ", 0)], f"only blank captions for 1 videos: '{BUG}'"),
        ],
    )
    def test_other_files(self, tmp_path: Path, value: Any, message: str) -> None:
        with pytest.raises(AnnotationError, match=message):
            small("didemo", write_json(tmp_path / "a.json", value), tmp_path)


class TestActivityNet:
    ONE, TWO = "v_uqiMw7tQ1Cc", "v_bXdq2zI1Ms0"

    def entry(self, *sentences: Any) -> dict[str, Any]:
        return {"duration": 55.15, "timestamps": [[0.28, 55.15]] * len(sentences), "sentences": list(sentences)}

    def file(self, folder: Path) -> Path:
        one, two = (
            self.entry("A man lifts a weight.", " He drops it. "),
            self.entry("Three men stand.", "", " They run."),
        )
        return write_json(folder / "val_1.json", {self.ONE: one, self.TWO: two})

    def test_sentences_are_joined(self, tmp_path: Path) -> None:
        file = self.file(tmp_path)
        got = small("activitynet", tmp_path, touch(tmp_path / "v", f"{self.ONE}.mp4", "bXdq2zI1Ms0.mkv"))
        assert owned(got) == [
            ("A man lifts a weight. He drops it.", self.ONE),
            ("Three men stand. They run.", self.TWO),
        ]
        assert [path.name for path in got.videos] == ["v_uqiMw7tQ1Cc.mp4", "bXdq2zI1Ms0.mkv"]
        assert got.notes[0] == "Blank captions left out: 1."
        with pytest.raises(AnnotationError, match="got 2 videos and 2 texts, expected 4917 and 4917"):
            read_benchmark("activitynet", annotations=file, videos=tmp_path)

    def test_with_and_without_the_prefix(self, tmp_path: Path) -> None:
        videos = touch(tmp_path / "v", f"{self.ONE}.mp4", "uqiMw7tQ1Cc.mp4", f"{self.TWO}.mp4")
        with pytest.raises(AnnotationError, match=r"'v_uqiMw7tQ1Cc' has two files"):
            small("activitynet", self.file(tmp_path), videos)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('["v_a"]', "expected an object of ids and objects with 'sentences', got list"),
            ('{"v_a": ["a"]}', "'v_a': expected an object with 'sentences'"),
            ('{"v_a": {"sentences": []}}', r"'v_a': sentences=\[\]: expected a list of at least one"),
            ('{"v_a": {"sentences": "a"}}', "'v_a': sentences='a': expected a list"),
            ('{"v_a": {"sentences": [3]}}', r"'v_a': sentences\[0\]=3: expected a string"),
            ('{"v_a": {"sentences": ["a"]}, "v_a": {"sentences": ["b"]}}', "'v_a' is there twice, as entries 1 and 2"),
            ('{"../a": {"sentences": ["a"]}}', "entry 1: .*not a name"),
        ],
    )
    def test_other_files(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(AnnotationError, match=message):
            small("activitynet", tmp_path / "a.json", tmp_path)
