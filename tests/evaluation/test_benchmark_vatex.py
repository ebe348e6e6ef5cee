from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.minis import owned, small, touch, write_json
from vidembed.errors import AnnotationError
from vidembed.evaluation import read_benchmark

ONE, TWO, THREE = "Ptf_2VRj-V0_000122_000132", "cC4Xb5xaGS4_000006_000016", "--_S9IDQPLg_000135_000145"
ENTRIES = [
    {"videoID": ONE, "enCap": ["A man shows a knife.", " A knife is drawn. "], "chCap": ["一个男人", "一把刀"]},
    {"videoID": TWO, "enCap": ["Dogs run.", "Two dogs play."], "chCap": ["狗", "狗"]},
    {"videoID": THREE, "enCap": ["Not in the split."], "chCap": ["无"]},
]
WANTED = [
    ("Dogs run.", TWO),
    ("Two dogs play.", TWO),
    ("A man shows a knife.", ONE),
    ("A knife is drawn.", ONE),
]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return touch(tmp_path / "videos", f"{ONE}.mp4", f"{TWO}.webm", f"{THREE}.mp4")


@pytest.mark.parametrize("listed", ["test_list.txt", "tst_names.npy"])
@pytest.mark.parametrize("form", ["vatex_validation_v1.0.json", "ref_captions.json"])
def test_english_captions_of_the_split(tmp_path: Path, videos: Path, form: str, listed: str) -> None:
    by_id = {entry["videoID"]: entry["enCap"] for entry in ENTRIES}
    file = write_json(tmp_path / form, by_id if form == "ref_captions.json" else ENTRIES)
    if listed.endswith("npy"):
        np.save(tmp_path / listed, np.array([TWO, ONE]))
    else:
        (tmp_path / listed).write_text(f"{TWO}\n{ONE}\n")
    got = small("vatex", tmp_path, videos)
    assert owned(got) == WANTED
    assert got.positives.sum(axis=0).tolist() == [2, 2]
    assert owned(small("vatex", file, videos, split=tmp_path / listed)) == WANTED
    assert len(small("vatex", file, videos).videos) == 3  # a file named alone is taken whole, and its counts tell


def test_the_validation_set_is_not_the_split(tmp_path: Path, videos: Path) -> None:
    entries = [{"videoID": f"v{n}", "enCap": ["a"] * 10} for n in range(3000)]
    file = write_json(tmp_path / "a.json", entries)
    with pytest.raises(AnnotationError, match=r"got 3000 videos and 30000 texts, expected 1500 and 15000.*in split"):
        read_benchmark("vatex", annotations=file, videos=videos)
    touch(videos, *(f"v{n}.mp4" for n in range(1500)))
    (tmp_path / "ids.txt").write_text("\n".join(f"v{n}" for n in range(1500)))
    got = read_benchmark("vatex", annotations=file, videos=videos, split=tmp_path / "ids.txt")
    assert (len(got.videos), len(got.texts)) == (1500, 15_000)
    assert [note.partition(" texts")[0] for note in got.notes] == ["15000 of 15000"]  # all belong to several


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([*ENTRIES, ENTRIES[1]], f"entry 4: '{TWO}' is already at entry 2"),
        ([{"videoID": ONE}], "entry 1: expected a list of objects with 'videoID' and 'enCap'"),
        ([ONE], "entry 1: expected a list of objects"),
        ([], "got an empty list"),
        ("words", "got str"),
        ([{"videoID": ONE, "enCap": "A man."}], "entry 1: enCap='A man.': expected a list"),
        ([{"videoID": ONE, "enCap": []}], r"enCap=\[\]: expected a list of at least one"),
        ([{"videoID": ONE, "enCap": ["a", None]}], r"entry 1: enCap\[1\]=None: expected a string"),
        ([{"videoID": 7, "enCap": ["a"]}], "entry 1: video id=7: expected a string"),
        ([{"videoID": "a/b", "enCap": ["a"]}], "entry 1: .*not a name"),
        ({ONE: "A man."}, "captions='A man.': expected a list"),
    ],
)
def test_other_files(tmp_path: Path, videos: Path, value: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        small("vatex", write_json(tmp_path / "a.json", value), videos)


@pytest.mark.parametrize(
    ("content", "message"), [(b'["\xff"]', "line 1: not UTF-8"), (b"[1,", "not JSON"), (b"\x1f\x8b\x08", "not UTF-8")]
)
def test_what_is_no_json(tmp_path: Path, videos: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        small("vatex", tmp_path / "a.json", videos)
