"""Files of captioned videos: what is read, and that each error names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidembed.captions import MAX_LINE_BYTES, CaptionedVideo, read_captioned_videos
from vidembed.errors import AnnotationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a.mp4, b.mp4 and sub/c.mp4; nothing here opens them."""
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def jsonl(folder: Path, *rows: Any, escaped: bool = True) -> Path:
    file = folder / "pairs.jsonl"
    lines = [json.dumps(row, ensure_ascii=escaped) if isinstance(row, (dict, list)) else row for row in rows]
    file.write_bytes("\n".join(lines).encode())
    return file


def csv(folder: Path, text: str) -> Path:
    file = folder / "pairs.csv"
    file.write_bytes(text.encode())
    return file


class TestReads:
    @pytest.mark.parametrize("column", ["caption", "text", "sentence"])
    def test_jsonl(self, folder: Path, column: str) -> None:
        file = jsonl(folder, {"video": "a.mp4", column: " a dog "}, "", {"video": "sub/c.mp4", column: "ein Hund, ö"})
        assert read_captioned_videos(file) == [
            CaptionedVideo(folder / "a.mp4", "a dog"),
            CaptionedVideo(folder / "sub" / "c.mp4", "ein Hund, ö"),
        ]

    @pytest.mark.parametrize("column", ["caption", "text", "sentence"])
    def test_csv(self, folder: Path, column: str) -> None:
        file = csv(folder, f'video , {column},more\na.mp4,"a dog, running\nfast",1\r\n\nb.mp4,"he said ""hi""",2\n')
        assert read_captioned_videos(file) == [
            CaptionedVideo(folder / "a.mp4", "a dog, running\nfast"),
            CaptionedVideo(folder / "b.mp4", 'he said "hi"'),
        ]

    def test_several_captions(self, folder: Path) -> None:
        rows = {"video": "a.mp4", "captions": ["one", "two"], "label": 0}, {"video": "b.mp4", "text": "x", "label": 1}
        file = jsonl(folder, *rows)
        assert [(pair.video.name, pair.text, pair.label) for pair in read_captioned_videos(file)] == [
            ("a.mp4", "one", False),
            ("a.mp4", "two", False),
            ("b.mp4", "x", True),
        ]  # fmt: skip

    def test_labels(self, folder: Path) -> None:
        row = {"video": "a.mp4", "text": "x"}
        values = [0, 1, True, False, "1", "False", "TRUE "]
        got = read_captioned_videos(jsonl(folder, *({**row, "label": value} for value in values)))
        assert [pair.label for pair in got] == [False, True, True, False, True, False, True]
        got = read_captioned_videos(
            csv(folder, "video,text,label\na.mp4,x,0\na.mp4,x,1\na.mp4,x,True\na.mp4,x, false\n")
        )
        assert [pair.label for pair in got] == [False, True, True, False]

    def test_null_or_an_empty_cell_is_no_label(self, folder: Path) -> None:
        assert read_captioned_videos(jsonl(folder, {"video": "a.mp4", "text": "x", "label": None}))[0].label is None
        assert read_captioned_videos(csv(folder, "video,text,label\na.mp4,x,\n"))[0].label is None

    def test_byte_order_mark(self, folder: Path) -> None:
        assert len(read_captioned_videos(csv(folder, "\ufeffvideo,text\na.mp4,x\n"))) == 1
        file = jsonl(folder, {"video": "a.mp4", "text": "x"})
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert len(read_captioned_videos(file)) == 1

    def test_where_videos_lie(self, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        file = jsonl(elsewhere, {"video": "c.mp4", "text": "x"}, {"video": str(folder / "a.mp4"), "text": "y"})
        assert [pair.video for pair in read_captioned_videos(file, videos=str(folder / "sub"))] == [
            folder / "sub" / "c.mp4",
            folder / "a.mp4",
        ]
        with pytest.raises(AnnotationError, match=r"1 of 2 video files are missing.*c\.mp4 \(line 1\).*videos=FOLDER"):
            read_captioned_videos(file)

    def test_suffix_in_capitals(self, folder: Path) -> None:
        file = jsonl(folder, {"video": "a.mp4", "text": "x"}).rename(folder / "PAIRS.JSONL")
        assert len(read_captioned_videos(file)) == 1


ROW = {"video": "a.mp4", "text": "x"}


class TestErrors:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ("{", "not JSON"),
            ("video,text", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ([], "expected an object, got list"),
            ({"video": "a.mp4"}, r"none of 'caption', 'text' and 'sentence'; the columns are 'video'"),
            ({"caption": "x", "file": "a"}, r"no 'video'; the columns are 'caption, file'"),
            ({**ROW, "caption": "y"}, "has 'caption' and 'text'; keep only the column"),
            ({**ROW, "captions": ["y"]}, "has 'text' and 'captions'"),
            ({"video": "a.mp4", "text": " \t"}, "text is empty"),
            ({"video": "", "text": "x"}, "video is empty"),
            ({"video": "a.mp4", "text": 5}, "text=5: expected a string, got int"),
            ({"video": None, "text": "x"}, "video=None: expected a string"),
            ({"video": "a.mp4", "captions": []}, r"captions=\[\]: expected a list of at least one"),
            ({"video": "a.mp4", "captions": "x"}, "captions='x': expected a list"),
            ({"video": "a.mp4", "captions": ["x", ""]}, r"captions\[1\] is empty"),
            ({"video": "a.mp4", "captions": ["x", 1]}, r"captions\[1\]=1: expected a string"),
            ({"video": "a.mp4", "text": "\ud800"}, "not valid Unicode"),
            ({**ROW, "label": 2}, "label=2: expected 0, 1, true or false"),
            ({**ROW, "label": "yes"}, "label='yes'"),
            ({**ROW, "label": 1.0}, "label=1.0"),
            ("x" * (MAX_LINE_BYTES + 1), f"longer than {MAX_LINE_BYTES} bytes"),
        ],
    )
    def test_jsonl_rows(self, folder: Path, bad: Any, message: str) -> None:
        with pytest.raises(AnnotationError, match=rf"pairs\.jsonl, line 3: .*{message}"):
            read_captioned_videos(jsonl(folder, ROW, "", bad))

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("video,text\na.mp4,x\nb.mp4\n", 3, "1 cells under a header of 2"),
            ("video,text\na.mp4,a dog, running\n", 2, "3 cells under a header of 2.*double quotes"),
            ("video,video,text\na.mp4,b.mp4,x\n", 1, "has a column twice"),
            ("video;text\na.mp4;x\n", 2, "no 'video'; the columns are 'video;text'"),
            ("video,captions\na.mp4,x\n", 2, "captions='x': expected a list"),
            ('video,text\na.mp4,"two\nlines"\nb.mp4,\n', 4, "text is empty"),
            ('video,text\na.mp4,"x" y\n', 2, "not CSV"),
            ("video,text,label\na.mp4,x,2\n", 2, "label='2'"),
            ("video,text\na.mp4," + "x" * 200_000 + "\n", 2, "not CSV.*field limit"),
        ],
    )
    def test_csv_rows(self, folder: Path, text: str, line: int, message: str) -> None:
        with pytest.raises(AnnotationError, match=rf"(?s)pairs\.csv, line {line}: .*{message}"):
            read_captioned_videos(csv(folder, text))

    def test_not_utf8(self, folder: Path) -> None:
        file = folder / "pairs.csv"
        file.write_bytes("video,text\na.mp4,x\nb.mp4,ö\n".encode("latin-1"))
        with pytest.raises(AnnotationError, match=r"line 3: not UTF-8"):
            read_captioned_videos(file)

    @pytest.mark.parametrize("text", ["", "\n\n", "video,text\n"])
    def test_no_rows(self, folder: Path, text: str) -> None:
        with pytest.raises(AnnotationError, match="no usable rows"):
            read_captioned_videos(csv(folder, text))

    def test_label_on_some_rows(self, folder: Path) -> None:
        with pytest.raises(AnnotationError, match="line 2 has a label and line 1 has none"):
            read_captioned_videos(jsonl(folder, ROW, {**ROW, "label": 1}, ROW))

    def test_missing_videos_are_listed_up_to_five(self, folder: Path) -> None:
        rows = [{"video": f"gone{index}.mp4", "text": "x"} for index in (0, 1, 2, 3, 4, 5, 6, 0)]
        with pytest.raises(AnnotationError, match=r"7 of 8 video files are missing: .*gone0\.mp4 \(line 2\)") as error:
            read_captioned_videos(jsonl(folder, ROW, *rows))
        assert "gone4.mp4 (line 6) and 2 more" in str(error.value)
        assert "gone5" not in str(error.value)

    def test_a_folder_is_no_video(self, folder: Path) -> None:
        with pytest.raises(AnnotationError, match="1 of 1 video files are missing"):
            read_captioned_videos(jsonl(folder, {"video": "sub", "text": "x"}))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("pairs.txt", r"ends in \.jsonl or \.csv, got '\.txt'"),
            ("pairs", "got 'no suffix'"),
            ("gone.csv", "no such file"),
            ("folder.csv", "not a file"),
        ],
    )
    def test_which_file(self, folder: Path, name: str, message: str) -> None:
        (folder / "folder.csv").mkdir()
        with pytest.raises(AnnotationError, match=message):
            read_captioned_videos(folder / name)

    def test_no_such_folder_of_videos(self, folder: Path) -> None:
        with pytest.raises(AnnotationError, match=r"videos=.*no such folder"):
            read_captioned_videos(jsonl(folder, ROW), videos=folder / "nowhere")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=4),
    escaped=st.booleans(),
)
def test_any_text_survives(folder: Path, texts: list[str], escaped: bool) -> None:
    got = read_captioned_videos(jsonl(folder, *({"video": "a.mp4", "text": text} for text in texts), escaped=escaped))
    assert [pair.text for pair in got] == [text.strip() for text in texts]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".jsonl", ".csv"]))
def test_any_bytes_are_read_or_refused(folder: Path, content: bytes, suffix: str) -> None:
    file = folder / f"noise{suffix}"
    file.write_bytes(content)
    with pytest.raises(AnnotationError, match="noise"):
        read_captioned_videos(file)
