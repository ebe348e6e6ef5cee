from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vidembed.errors import VideoUriError
from vidembed.inputs import kind_of
from vidembed.uri import (
    MAX_URI_LENGTH,
    VideoRef,
    content_fingerprint,
    decoded_path,
    document_video,
    is_video_path,
    names_video,
    parse_video_uri,
    segment_times,
    video_uri,
)
from vidembed.video import VideoSegment
from vidembed.video.segments import Windows

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in {".", ".."}
)
TIMES = st.one_of(st.integers(0, 10**6).map(float), st.floats(0, 1e9))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float | None, float | None]:
    start, end = draw(st.none() | TIMES), draw(st.none() | TIMES)
    return (start, end) if end is None or end > (start or 0) else (start, None)


# -- there and back ----------------------------------------------------------------------------------------------------


@given(st.lists(NAMES, min_size=1, max_size=4), ranges())
@example(["a b#c:d%20e\n\u00fc\u3042'.mp4"], (10.0, 20.0))
@example([os.fsdecode(b"\xff\xfe.mp4")], (1e-7, 1e9))
def test_a_path_goes_there_and_back(names: list[str], times: tuple[float | None, float | None]) -> None:
    path = Path("/", *names)
    text = video_uri(path, *times)
    assert text.isascii()
    assert not re.search(r"\s", text)
    found = parse_video_uri(text)
    assert found == VideoRef(path, times[0] or 0.0, times[1])
    assert found.uri == text


@given(st.lists(NAMES.filter(lambda name: not set(name) & set('\\:*?"<>|')), min_size=1, max_size=4))
@example(["50% \u00fc#1", "a b.mp4"])
def test_a_windows_path_goes_there_and_back(names: list[str]) -> None:
    path = PureWindowsPath("C:\\", *names)
    text = video_uri(path, 1, 2)
    assert re.fullmatch(r"video\+file:///C:/[!-~]*#t=1,2", text)
    encoded = text.removeprefix("video+file://").partition("#")[0]
    assert PureWindowsPath(decoded_path(encoded, windows=True, shown=text)) == path


@given(st.from_regex(r"[a-z]{1,9}\.org/[!-~]{0,30}", fullmatch=True).filter(lambda rest: "#" not in rest), ranges())
def test_an_address_goes_there_and_back(rest: str, times: tuple[float | None, float | None]) -> None:
    url = f"https://{re.sub(r'[^A-Za-z0-9./?&=%_-]', '', rest)}"
    found = parse_video_uri(video_uri(url, *times), allowed_schemes=["https"])
    assert found == VideoRef(url, times[0] or 0.0, times[1])


@pytest.mark.parametrize(
    ("start", "end", "fragment"),
    [
        (None, None, ""),
        (0, None, ""),
        (10, 20, "#t=10,20"),
        (10.5, None, "#t=10.5"),
        (None, 20, "#t=,20"),
        (0.0, 0.25, "#t=,0.25"),
        (1e-7, 1e16, "#t=0.0000001,10000000000000000"),
    ],
)
def test_times_are_a_media_fragment(start: float | None, end: float | None, fragment: str) -> None:
    assert video_uri("/a/b.mp4", start, end) == f"video+file:///a/b.mp4{fragment}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\a.mp4", "file:///C:/a.mp4"),
        (PureWindowsPath("d:/my clips/\u00fc#1.mp4"), "file:///d:/my%20clips/%C3%BC%231.mp4"),
        (PurePosixPath("/a/50%.mp4"), "file:///a/50%25.mp4"),
        ("https://example.org/a b.mp4?sig=%2F", "https://example.org/a%20b.mp4?sig=%2F"),
    ],
)
def test_encoding(path: str | os.PathLike[str], expected: str) -> None:
    assert video_uri(path) == f"video+{expected}"


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert video_uri("a.mp4") == video_uri(tmp_path / "a.mp4") == video_uri("b/../a.mp4")
    assert video_uri("~/a.mp4") == video_uri(tmp_path / "home" / "a.mp4")


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    assert video_uri(tmp_path / "link.mp4").endswith("/link.mp4")


@pytest.mark.parametrize(
    ("path", "start", "end", "message"),
    [
        ("", None, None, "empty path"),
        ("a\0b.mp4", None, None, "NUL"),
        ("/\ud800.mp4", None, None, "not allowed in file names"),
        ("/" + "\u00fc" * MAX_URI_LENGTH, None, None, "too long"),
        (PureWindowsPath("\\\\host\\share\\a.mp4"), None, None, "on a drive"),
        (PureWindowsPath("a.mp4"), None, None, "on a drive"),
        ("https://example.org/a.mp4#t=1", None, None, "give the times as start and end"),
        ("a.mp4", -1, None, "start=-1"),
        ("a.mp4", float("nan"), None, "start=nan"),
        ("a.mp4", None, float("inf"), "end=inf"),
        ("a.mp4", None, 0, "end=0 is not above start=None"),
        ("a.mp4", 2, 1, "end=1 is not above start=2"),
        ("a.mp4", True, None, "start=True"),
        ("a.mp4", "1", None, "start='1'"),
    ],
)
def test_what_cannot_be_written(path: str, start: float | None, end: float | None, message: str) -> None:
    with pytest.raises(VideoUriError, match=message):
        video_uri(path, start, end)


# -- what is a URI, and what is text -----------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_any_other_text_is_text(text: str) -> None:
    if not text.lower().startswith("video+"):
        assert parse_video_uri(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file:///a.mp4",
        "/a.mp4",
        "video",
        "video+",
        "video+file:",
        "video+file:/a.mp4",
        "see video+file:///a.mp4",
        "video+file:///a.mp4 is a video",
        "video+file:///a.mp4\nvideo+file:///b.mp4",
        " video+file:///a.mp4",
        "video+file:///a.mp4\n",
        "video+file:///a b.mp4",
        "video+://a.mp4",
    ],
)
def test_text_that_looks_like_one_is_text(text: str) -> None:
    assert parse_video_uri(text) is None


def test_schemes_come_in_either_case() -> None:
    assert parse_video_uri("VIDEO+File:///a.mp4") == VideoRef(Path("/a.mp4"))
    assert parse_video_uri("video+file://localhost/a.mp4#t=1.") == VideoRef(Path("/a.mp4"), 1.0)


def test_long_text_is_cheap() -> None:
    begun = time.perf_counter()
    for text in (
        "video+file:///" * 10**6,
        "video+file:///" + "a" * 10**7,
        "video+" + "a" * (MAX_URI_LENGTH - 6),
        "x" * 10**7 + "video+file:///a.mp4" + " " * MAX_URI_LENGTH,
    ):
        assert parse_video_uri(text) is None
    for hard in ("video+file:///" + "#t=1" * 4000, "video+file:///a#t=" + "1" * 16_000 + "x"):
        with pytest.raises(VideoUriError):
            parse_video_uri(hard)
    assert time.perf_counter() - begun < 2


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video+https://example.org/a.mp4", "scheme 'https' is not allowed; allowed_schemes is file"),
        ("video+ftp://example.org/a.mp4", "'ftp' is not allowed"),
        ("video+file://example.org/a.mp4", "names the machine 'example.org'"),
        ("video+file://a.mp4", "names the machine"),
        ("video+file://", "it has no file"),
        ("video+file:///a%00.mp4", "it has no file"),
        ("video+file:///a.mp4#", "time range"),
        ("video+file:///a.mp4#t=", "time range"),
        ("video+file:///a.mp4#t=1,", "time range"),
        ("video+file:///a.mp4#t=-1,2", "time range"),
        ("video+file:///a.mp4#t=1e3", "time range"),
        ("video+file:///a.mp4#t=npt:1,2", "time range"),
        ("video+file:///a.mp4#t=1,2&x=3", "time range"),
        ("video+file:///a.mp4#xywh=1,2,3,4", "time range"),
        ("video+file:///a.mp4#t=\u0661", "time range"),
        ("video+file:///a.mp4#t=2,1", "must be above its start"),
        ("video+file:///a.mp4#t=0,0", "must be above its start"),
        ("video+file:///a.mp4#t=" + "9" * 400, "finite"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(VideoUriError, match=message):
        parse_video_uri(text)


def test_messages_hide_credentials() -> None:
    with pytest.raises(VideoUriError) as caught:
        parse_video_uri("video+https://user:secret@example.org/a.mp4?sig=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    with pytest.raises(VideoUriError, match="no host"):
        parse_video_uri("video+https:///a.mp4", allowed_schemes=["https"])


@pytest.mark.parametrize("schemes", ["file", ["file", "s3"]])
def test_unknown_schemes_are_refused(schemes: object) -> None:
    with pytest.raises(ValueError, match="allowed_schemes"):
        parse_video_uri("words", allowed_schemes=schemes)


def test_root_confines(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-not"
    root.mkdir()
    outside.mkdir()
    (root / "out.mp4").symlink_to(outside / "a.mp4")
    (root / "out").symlink_to(outside)
    (outside / "in.mp4").symlink_to(root / "a.mp4")
    (tmp_path / "alias").symlink_to(root)
    for good in (root / "a.mp4", root / "deep" / "a.mp4", outside / "in.mp4", tmp_path / "alias" / "a.mp4"):
        assert parse_video_uri(video_uri(good), root=root) == VideoRef(good)
        assert parse_video_uri(video_uri(good), root=tmp_path / "alias") == VideoRef(good)
    climbing = f"video+file://{root}/../root-not/a.mp4"
    escaped = f"video+file://{root}/%2e%2e/root-not/a.mp4"
    bad = [video_uri(path) for path in (outside / "a.mp4", root / "out.mp4", root / "out" / "a.mp4")]
    for text in (*bad, climbing, escaped):
        with pytest.raises(VideoUriError, match="outside root"):
            parse_video_uri(text, root=root)


def test_a_link_to_itself_is_left_for_reading(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    assert parse_video_uri(video_uri(tmp_path / "loop.mp4"), root=tmp_path) is not None


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_reference_is_always_a_segment() -> None:
    assert VideoRef(Path("/a.mp4"), 1, 2).segment() == VideoSegment(Path("/a.mp4"), 1, 2)
    assert VideoRef("https://example.org/v?id=1").segment() == VideoSegment("https://example.org/v?id=1", 0, None)


def test_suffixes_come_in_either_case() -> None:
    assert is_video_path("a.MP4")
    assert is_video_path(Path("/a/b.webm"))
    assert not is_video_path("a.txt")
    assert not is_video_path("mp4")


def test_segments_are_those_of_the_index() -> None:
    assert segment_times(25, 10) == Windows(10).split(25) == [(0, 10), (10, 20), (15, 25)]
    with pytest.raises(ValueError, match="overlap"):
        segment_times(25, 10, 10)


def test_fingerprints_are_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    before = content_fingerprint(str(tmp_path / "a"))
    os.utime(tmp_path / "a", ns=(1, 1))
    assert content_fingerprint(tmp_path / "a") == before
    (tmp_path / "a").write_bytes(b"y")
    assert content_fingerprint(tmp_path / "a") != before


def test_importing_it_takes_no_torch() -> None:
    code = "import sys, vidembed.uri; sys.exit(int(bool({'torch', 'lancedb', 'transformers'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- documents: a video URI, words, or a bare path, which is neither ---------------------------------------------------

WORD = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="/\\"), min_size=1, max_size=12)
PROSE = st.lists(WORD, min_size=2, max_size=12).map(" ".join)


@pytest.mark.parametrize(
    "text",
    [
        "clips/a.mp4",
        "a.MP4",
        " clips/a.mp4\n",
        "./a.webm",
        "/srv/x.mkv",
        "/srv/my videos/x.mkv",
        "~/v/a.mp4",
        "~/my videos/a.mp4",
        "~ann/a.mp4",
        "C:\\v\\a.mov",
        "C:\\my videos\\a.mov",
        "C:/my videos/a.mov",
        "\\\\server\\my videos\\a.mov",
        "file:///a.mp4",
        "file:///my videos/a.mp4",
        "file:///a.mp4#t=10,20",
        "clips/a.mp4#t=10",
        "https://example.org/a.mp4?token=x#t=1,2",
        "s3://bucket/a.mp4",
        "video+file:/a.mp4",
    ],
)
def test_the_bare_path_of_a_video_is_neither_a_video_nor_words(text: str) -> None:
    assert names_video(text)
    with pytest.raises(VideoUriError, match=r"^texts\[3\]: .*[ax]\.\w+.*VideoLoader.*vidembed\.uri\.video_uri"):
        document_video(text, name="texts[3]", loader="VideoLoader")


@pytest.mark.parametrize(
    "text",
    [
        "see clip.mp4 for details",
        "For details see clip.mp4",
        "see clips/a.mp4",
        "a.mp4 and b.mp4",
        "Play clips/a.mp4.",
        "It was shown twice,\nsee\nclip.mp4",
        "/watch\nclip.mp4",
        "file: see clip.mp4",
        "https://example.org/a.mp4 shows clip.mp4",
        "file:///a.mp4?b and more",
        "https://example.org/a.mp4#t=1 https://example.org/a.mp4#t=2",
        "mp4",
        ".mp4",
        "notes.txt",
        "clips/a.jpg",
        "https://example.org/watch?v=a.mp4",
        "x" * MAX_URI_LENGTH + ".mp4",
    ],
)
def test_text_around_the_name_of_a_file_is_words(text: str) -> None:
    assert not names_video(text)
    assert document_video(text, name="texts[3]", loader="VideoLoader") is None


@given(PROSE, st.sampled_from(["clip.mp4", "clips/a.mov", ""]))
def test_prose_is_never_taken_for_a_path(prose: str, last: str) -> None:
    text = f"{prose} {last}" if last else prose
    assert document_video(text, name="text", loader="VideoLoader") is None


@given(st.text(max_size=40), st.sampled_from([".mp4", ".MOV", ".ts", ".gif"]))
@example("/srv/my videos/a", ".mp4")
@example("https://example.org/a", ".mp4")
def test_what_an_encoder_takes_for_a_video_is_never_words(stem: str, suffix: str) -> None:
    text = f"{stem}{suffix}"
    if kind_of(text) == "video" and len(text.splitlines()) == 1:
        assert names_video(text)


def test_a_relative_path_with_spaces_is_one_if_its_file_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not names_video("my clips/a b.mp4")
    (tmp_path / "my clips").mkdir()
    (tmp_path / "my clips" / "a b.mp4").touch()
    assert names_video("my clips/a b.mp4")
    assert not names_video("see my clips/a b.mp4")


def test_a_document_is_one_uri_or_words() -> None:
    read = document_video(" video+file:///v/a.mp4#t=1,2\n", name="text", loader="VideoLoader")
    assert read == VideoRef(Path("/v/a.mp4"), 1.0, 2.0)
    with pytest.raises(VideoUriError, match="outside root"):
        document_video("video+file:///v/a.mp4", name="text", loader="VideoLoader", root="/w")
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match=r"texts\[0\]: got '.*'; expected some words or a video URI"):
            document_video(empty, name="texts[0]", loader="VideoLoader")
    with pytest.raises(TypeError, match=r"texts\[0\]: got None; a string is needed"):
        document_video(None, name="texts[0]", loader="VideoLoader")  # type: ignore[arg-type]
