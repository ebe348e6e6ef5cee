"""MSVD: three forms of the captions, the list of the split, and the pickle that is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.minis import owned, small, touch, write_csv, write_json
from vidembed.errors import AnnotationError
from vidembed.evaluation import ranks, read_benchmark

BIRD, POT = "mv89psg6zh4_33_46", "-_hbPLsZvvo_18_25"
WANTED = [("A pot is stirred.", POT), ("A bird in a sink, bathing.", BIRD), ("A faucet runs on a bird.", BIRD)]
HEADER = ("VideoID", "Start", "End", "WorkerID", "Source", "AnnotationTime", "Language", "Description")


def row(name: str, start: str, end: str, language: str, text: str) -> tuple[str, ...]:
    return (name, start, end, "223428", "unverified", "34", language, text)


def as_text(folder: Path) -> Path:
    path = folder / "AllVideoDescriptions.txt"
    lines = ["# Comments of the corpus", "", f"{BIRD} {WANTED[1][0]}", f"{POT} {WANTED[0][0]}"]
    path.write_text("\n".join([*lines, f"{BIRD} {WANTED[2][0]}", "vtrain_1_2 not in the split", ""]))
    return path


def as_csv(folder: Path) -> Path:
    rows = [
        row("mv89psg6zh4", "33", "46", "English", WANTED[1][0]),
        row("mv89psg6zh4", "33", "46", "Slovene", "Papagaj se umiva."),
        row("-_hbPLsZvvo", "18", "25.0", "English", WANTED[0][0]),
        row("mv89psg6zh4", "33", "46", "English", WANTED[2][0]),
        row("vtrain", "1", "2", "English", "not in the split"),
    ]
    return write_csv(folder / "video_corpus.csv", HEADER, rows)


def as_json(folder: Path) -> Path:
    captions = {BIRD: [WANTED[1][0].split(" "), WANTED[2][0]], "vtrain_1_2": [["x"]], POT: [WANTED[0][0].split(" ")]}
    return write_json(folder / "raw-captions.json", captions)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with the list of the split."""
    (tmp_path / "test_list.txt").write_text(f"{POT}\n{BIRD}\n")
    return tmp_path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return touch(tmp_path / "YouTubeClips", f"{BIRD}.avi", f"{POT}.avi", "vtrain_1_2.avi")


@pytest.mark.parametrize("write", [as_text, as_csv, as_json])
def test_three_forms_are_one(corpus: Path, videos: Path, write: Any) -> None:
    file = write(corpus)
    got = small("msvd", corpus, videos)
    assert owned(got) == WANTED
    assert got.video_ids == (POT, BIRD)
    assert owned(small("msvd", file, videos, split=corpus / "test_list.txt")) == WANTED


def test_any_caption_is_right_for_a_video(corpus: Path, videos: Path) -> None:
    """Video to text: a video has the rank of the best of its captions, whose others do not stand in the way."""
    as_text(corpus)
    positives = small("msvd", corpus, videos).positives
    assert positives.tolist() == [[True, False], [False, True], [False, True]]
    scores = np.array([[0.2, 0.1], [0.9, 0.3], [0.5, 0.8]])  # (T, V)
    assert ranks(scores, positives).tolist() == [1, 2, 1]
    # the pot: both captions of the bird are above its own; the bird: its second caption is best of all
    assert ranks(scores.T, positives.T).tolist() == [3, 1]


def test_the_list_is_needed(corpus: Path, videos: Path) -> None:
    file = as_text(corpus)
    with pytest.raises(AnnotationError, match="give the list of the test ids as split"):
        small("msvd", file, videos)
    (corpus / "test_list.txt").unlink()
    with pytest.raises(
        AnnotationError, match=r"does not contain the list of the test ids of MSVD; expected test_list.txt"
    ):
        small("msvd", corpus, videos)


def test_several_forms_in_a_folder(corpus: Path, videos: Path) -> None:
    as_text(corpus)
    as_csv(corpus)
    with pytest.raises(AnnotationError, match=r"can be 'AllVideoDescriptions.txt', 'video_corpus.csv'"):
        small("msvd", corpus, videos)


def test_counts(corpus: Path, videos: Path) -> None:
    as_text(corpus)
    with pytest.raises(AnnotationError, match="got 2 videos and 3 texts, expected 670 and 27763"):
        read_benchmark("msvd", annotations=corpus, videos=videos)


def test_blank_captions_are_counted(corpus: Path, videos: Path) -> None:
    rows = [row("mv89psg6zh4", "33", "46", "English", text) for text in ("a", "", " ")]
    rows.append(row("-_hbPLsZvvo", "18", "25", "English", "b"))
    write_csv(corpus / "video_corpus.csv", HEADER, rows)
    got = small("msvd", corpus, videos)
    assert owned(got) == [("b", POT), ("a", BIRD)]
    assert got.notes[0] == "Blank captions left out: 2."
    with pytest.raises(AnnotationError, match="after 2 blank captions were left out"):
        small("msvd", corpus, videos, check_counts=True)


def test_equal_captions_of_a_video_stay_apart(corpus: Path, videos: Path) -> None:
    write_json(corpus / "raw-captions.json", {POT: ["same", "same"], BIRD: ["same"]})
    got = small("msvd", corpus, videos)
    assert owned(got) == [("same", POT), ("same", POT), ("same", BIRD)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "video,caption\na.mp4,b\n", "no column 'VideoID'"),
        ("a.csv", "VideoID,Start,End,Language,Description\na,1,2,German,b\n", "no row has 'English'"),
        (
            "a.csv",
            "VideoID,Start,End,Language,Description\na,x,2,English,b\n",
            r"line 2: Start='x': expected whole sec",
        ),
        ("a.csv", "VideoID,Start,End,Language,Description\n../a,1,2,English,b\n", "line 2: .*not a name"),
        ("a.txt", "# nothing\n", "no captions found"),
        ("a.txt", "../a words\n", "line 1: .*not a name"),
        ("a.json", "[1]", "expected an object of ids and lists of captions, got list"),
        ("a.json", "{}", "got an empty one"),
        ("a.json", '{"a": []}', "'a': .*expected a list of at least one caption"),
        ("a.json", '{"a": ["b", 3]}', r"'a': captions\[1\]=3: expected a string, got int"),
        ("a.json", '{"a": [["b", 3]]}', r"'a': captions\[0\]=3: expected a string, got int"),
        ("a.json", '{"a": ["b"], "c": ["d"], "a": ["e"]}', "'a' is there twice, as entries 1 and 3"),
        ("a.json", '{"a/b": ["c"]}', "entry 1: .*not a name"),
        ("a.json", '{" a": ["c"]}', "white space around it"),
        ("a.json", '{"a": ["\\ud800"]}', "not valid Unicode"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.tsv", "a\tb\n", r"expected a file that ends in .txt, .csv or .json, got '.tsv'"),
    ],
)
def test_other_files(corpus: Path, videos: Path, name: str, content: str, message: str) -> None:
    (corpus / name).write_text(content)
    with pytest.raises(AnnotationError, match=message):
        small("msvd", corpus / name, videos, split=corpus / "test_list.txt")


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class TestPickle:
    def refusal(self, corpus: Path, videos: Path, value: Any) -> str:
        (corpus / "raw-captions.pkl").write_bytes(pickle.dumps(value))
        for given in (corpus, corpus / "raw-captions.pkl"):
            with pytest.raises(AnnotationError, match="pickle can run code") as caught:
                small("msvd", given, videos, split=corpus / "test_list.txt")
        return str(caught.value).partition("\n\n")[2]

    def test_it_is_not_read_and_the_way_out_works(self, corpus: Path, videos: Path) -> None:
        captions = {name: [text.split(" ") for text, owner in WANTED if owner == name] for name in (BIRD, POT)}
        script = self.refusal(corpus, videos, captions)
        subprocess.run([sys.executable, "-c", script], cwd=corpus, check=True, timeout=60)
        assert json.loads((corpus / "raw-captions.json").read_text()) == captions
        assert owned(small("msvd", corpus / "raw-captions.json", videos, split=corpus)) == WANTED

    def test_code_in_it_never_runs(self, corpus: Path, videos: Path) -> None:
        script = self.refusal(corpus, videos, {BIRD: Code(corpus / "ran")})
        with pytest.raises(subprocess.CalledProcessError) as caught:
            subprocess.run([sys.executable, "-c", script], cwd=corpus, capture_output=True, check=True, timeout=60)
        assert b"only dicts, lists and text are expected" in caught.value.stderr
        assert not (corpus / "ran").exists()
