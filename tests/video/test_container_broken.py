"""What cannot be read ends in the error of its kind, soon, and leaves nothing open."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.video.test_reading import check_times, numbers
from tests.zoo import Recipe, Zoo, draw, encode, native_threads, open_files
from vidembed.video import (
    CorruptVideo,
    DecodeLimits,
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    NotAFile,
    NotAVideo,
    NoVideoStream,
    UnsupportedCodec,
    VideoError,
    VideoNotFound,
    VideoTooLarge,
    VideoTruncated,
    load_video,
    probe,
)
from vidembed.video.container import FORMATS

pytestmark = pytest.mark.timeout(30)


def refused(path: Path | str, kind: type[VideoError], match: str | None = None) -> None:
    """Both ways of reading raise exactly ``kind``, naming the item."""
    for call in (load_video, probe):
        with pytest.raises(VideoError, match=match) as info:
            call(path)
        assert type(info.value) is kind
        assert Path(str(path)).name[-50:] in str(info.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.mp4", VideoNotFound, "no such file")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "below.mp4", VideoNotFound)
    refused(tmp_path / ("x" * 300 + ".mp4"), VideoNotFound)


def test_broken_and_circular_links(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    refused(tmp_path / "link.mp4", VideoNotFound, "link")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    refused(tmp_path / "circle.mp4", VideoNotFound)


def test_link_to_a_video(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(zoo.path("h264.mp4"))
    assert len(load_video(tmp_path / "link.mp4").frames) == 6


def test_directory_fifo_and_device(tmp_path: Path) -> None:
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    refused(folder, NotAFile, "directory")
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    refused(fifo, NotAFile, "FIFO")
    refused("/dev/null", NotAFile)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", EmptyFile)
    with pytest.raises(EmptyFile):
        load_video(b"")


def test_unreadable(zoo: Zoo, tmp_path: Path) -> None:
    """As root nothing is unreadable, so a child process gives its rights up first."""
    path = tmp_path / "secret.mp4"
    path.write_bytes(zoo.path("h264.mp4").read_bytes())
    script = (
        "import os, sys\n"
        "from vidembed.video import load_video, VideoPermission\n"
        "path = sys.argv[1]\n"
        "os.chmod(path, 0)\n"
        "if os.getuid() == 0:\n"
        "    os.chmod(os.path.dirname(path), 0o755)\n"
        "    fd = os.open(os.path.dirname(path), os.O_RDONLY)\n"
        "    os.fchdir(fd)\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "    path = os.path.basename(path)\n"
        "try:\n"
        "    load_video(path)\n"
        "except VideoPermission as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "Operation not permitted" in done.stderr:
        pytest.skip("this process may not give up its rights")
    assert done.stdout.startswith("refused:"), done.stderr
    assert "secret.mp4" in done.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noise.mp4", np.random.default_rng(0).bytes(200_000)),
        ("zeros.mp4", bytes(10_000)),
        ("text.mp4", b"this is a text, and no video\n" * 100),
        ("byte.mp4", b"x"),
        ("subtitles.mp4", b"1\n00:00:01,000 --> 00:00:02,000\nhello\n"),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>"),
    ],
)
def test_no_video_in_the_content(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, NotAVideo)


def test_lists_of_other_files_are_not_followed(zoo: Zoo) -> None:
    """All of these name a video that exists beside them, which must not be opened."""
    other = zoo.path("h264.mp4").name
    lists = {
        "concat.mp4": f"ffconcat version 1.0\nfile '{other}'\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{other}\n#EXT-X-ENDLIST\n",
        "dash.mp4": f"<?xml version='1.0'?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>",
    }
    for name, text in lists.items():
        (zoo.root / name).write_text(text)
        refused(zoo.root / name, NotAVideo, "list")
    refused(f"concat:{zoo.path('h264.mp4')}", InvalidVideoInput, "concat")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff"])
def test_a_single_picture(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(draw(1)).save(tmp_path / f"picture.{suffix}")
    path = tmp_path / f"picture_{suffix}.mp4"
    path.write_bytes((tmp_path / f"picture.{suffix}").read_bytes())
    refused(path, NotAVideo, "picture")


@pytest.mark.parametrize("name", ["audio.m4a", "cover.mp3", "cover.mp4"])
def test_no_video_stream(zoo: Zoo, name: str) -> None:
    refused(zoo.path(name), NoVideoStream, "no video stream")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("h264.mp4", b"avc1\x00\x00\x00\x00", b"zzzz\x00\x00\x00\x00"),
        ("h264.mkv", b"V_MPEG4/ISO/AVC", b"V_UNHEARD/OF/XX"),
    ],
)
def test_unknown_codec(zoo: Zoo, name: str, old: bytes, new: bytes) -> None:
    refused(zoo.patched(name, old, new), UnsupportedCodec)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["faststart.mp4", "open_gop.mkv", "h264.ts"])
def test_cut_short(zoo: Zoo, name: str, share: float) -> None:
    made, path = zoo[name], zoo.cut(name, share)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip = load_video(path)
    check_times(clip, made)
    assert 0.5 <= clip.duration < made.duration
    *seen, last = numbers(clip)
    *expected, due = made.shown_at(np.arange(len(clip.frames)) / 2)
    assert seen == expected
    assert last is not None
    assert 0 <= due - last < 5  # the cut may have taken frames that are decoded after the ones they precede
    missing = name != "h264.ts" and made.duration - clip.duration > 1
    assert clip.truncated is missing
    assert any(issubclass(x.category, VideoTruncated) and path.name in str(x.message) for x in caught) is missing


def test_cut_before_its_index(zoo: Zoo) -> None:
    """An mp4 whose index lies at the end, and is gone."""
    refused(zoo.cut("h264.mp4", 0.8), CorruptVideo, "index")


def test_few_bytes_lost(zoo: Zoo) -> None:
    made = zoo["faststart.mp4"]
    clip = load_video(zoo.zeroed("faststart.mp4", 0.5, 0.51))
    assert clip.damaged
    seen = numbers(clip)
    expected = made.shown_at(np.arange(20) / 2)
    assert len(seen) == 20
    assert sum(a == b for a, b in zip(seen, expected, strict=True)) >= 16


def test_much_lost(zoo: Zoo) -> None:
    path = zoo.zeroed("faststart.mp4", 0.3, 0.8)
    with pytest.raises(CorruptVideo, match=r"zeroed30.*could not be decoded"):
        load_video(path)
    assert probe(path).num_frames_estimate == 300


def test_nothing_decodes(zoo: Zoo) -> None:
    data = zoo.path("faststart.mp4").read_bytes()
    refused(zoo.zeroed("faststart.mp4", (data.index(b"mdat") + 9) / len(data), 1.0), CorruptVideo, "decoded")


@pytest.mark.parametrize("name", ["faststart.mp4", "open_gop.mkv", "h264.ts", "mpeg4_b.avi", "vp9.webm", "mpeg2.mpg"])
def test_flipped_bytes_never_crash_or_hang(zoo: Zoo, name: str) -> None:
    random = np.random.default_rng(7)
    original = np.frombuffer(zoo.path(name).read_bytes(), dtype=np.uint8)
    for count in (1, 20, 400):
        data = original.copy()
        data[random.integers(0, len(data), count)] ^= random.integers(1, 256, count, dtype=np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoTruncated)
            try:
                clip = load_video(data.tobytes(), limits=DecodeLimits(timeout_s=20))
            except VideoError as error:
                assert f"{len(data)} bytes" in str(error)  # noqa: PT017 - either end is right
            else:
                assert clip.frames.shape[0] == len(clip.timestamps) >= 1
                assert (np.diff(clip.timestamps) >= 0).all()


@pytest.mark.parametrize(
    "name", ["🎬 clip.mp4", 'it\'s "quoted".mp4', "%03d.mp4", "a:b.mp4", "-i.mp4", "new\nline.mp4", "ü" * 60 + ".mp4"]
)
def test_names(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = zoo.path("h264.mp4").read_bytes()
    (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name), tmp_path / name):
        assert len(load_video(path).frames) == 6
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(NotAVideo) as info:
        load_video(name)
    assert str(info.value).isprintable()


def test_a_name_that_is_not_utf8(zoo: Zoo, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(path).write_bytes(zoo.path("h264.mp4").read_bytes())
    assert len(load_video(path).frames) == 6
    assert len(load_video(Path(path)).frames) == 6
    Path(path).write_bytes(b"text")
    with pytest.raises(NotAVideo) as info:
        load_video(path)
    str(info.value).encode("utf-8")


@pytest.mark.parametrize(
    "name", ["pipe:0", "http:/x.mp4", "file:///etc/passwd", "concat:a|b", "subfile,,:x", "data:,x"]
)
def test_protocols_are_refused(name: str) -> None:
    with pytest.raises((InvalidVideoInput, VideoNotFound)):
        load_video(name)


def test_a_file_named_like_a_protocol(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("concat:x.mp4").write_bytes(zoo.path("h264.mp4").read_bytes())
    assert len(load_video("concat:x.mp4").frames) == 6


def test_timeout(zoo: Zoo) -> None:
    with pytest.raises(DecodeTimeout, match=r"timeout_s=1e-09"):
        load_video(zoo.path("seek.mp4"), limits=DecodeLimits(timeout_s=1e-9))
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout_s"):
            load_video(zoo.path("h264.mp4"), limits=DecodeLimits(timeout_s=wrong))
    assert load_video(zoo.path("h264.mp4"), limits=DecodeLimits(timeout_s=None)).frames.shape[0] == 6


def test_absurd_pictures(tmp_path: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tmp_path / "wide.mkv"
    with av.open(str(wide), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 20000, 16, "gray"
        frame = av.VideoFrame(20000, 16, "gray")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(wide, VideoTooLarge, "20000x16")
    monkeypatch.setattr("vidembed.video.picture.MAX_AREA", 150 * 90)
    refused(zoo.path("h264.mp4"), VideoTooLarge, "160x96")


def test_pictures_that_grow_absurd_on_the_way(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.ts"
    encode(large, Recipe(size=(320, 192)))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(zoo.path("h264.ts").read_bytes() + large.read_bytes())
    monkeypatch.setattr("vidembed.video.picture.MAX_AREA", 200 * 100)
    with pytest.raises(VideoTooLarge, match="320x192"):
        load_video(joined)


def test_unknown_backend(zoo: Zoo) -> None:
    with pytest.raises(ValueError, match=r"'opencv'.*'pyav', 'decord'"):
        load_video(zoo.path("h264.mp4"), backend="opencv")
    with pytest.raises(TypeError, match="Sampling"):
        load_video(zoo.path("h264.mp4"), 2.0)  # type: ignore[arg-type]


def test_nothing_stays_open(zoo: Zoo, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_bytes(b"text" * 100)
    paths = [zoo.path("h264.mp4"), text, zoo.cut("h264.mp4", 0.8), zoo.path("audio.m4a"), tmp_path / "missing.mp4"]
    for path in paths:
        _try(path)
    files, threads = open_files(), threading.active_count()
    native = native_threads()
    for _ in range(20):
        for path in paths:
            _try(path)
    assert open_files() == files
    assert threading.active_count() == threads
    assert native_threads() <= native + 1


def _try(path: Path) -> None:
    for call in (load_video, probe):
        try:
            call(path)
        except VideoError:
            continue


def test_the_whitelist_names_only_formats_that_exist() -> None:
    known = {name for entry in av.formats_available for name in entry.split(",")}
    assert set(FORMATS.split(",")) <= known
    for name in ("concat", "hls", "dash", "image2", "jpeg_pipe", "png_pipe", "mp3", "h264", "tty", "lavfi"):
        assert name not in FORMATS.split(",")
