from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from tests.ray import s3
from vidembed.index.files import UNKNOWN_TIME, clean
from vidembed.ray.stores import Address, find, is_address, open_store
from vidembed.video.clip import FileState

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x" * len(file))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a bucket `b` of a server that S3's client reaches by what the environment says."""
    (tmp_path / "b").mkdir()
    with s3.serve(tmp_path) as (host, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield tmp_path / "b"


@pytest.fixture
def memory() -> Any:
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()
    found.pseudo_dirs[:] = [""]


@given(path=NAMES)
def test_an_address_goes_there_and_back(path: str) -> None:
    address = Address("s3", "bucket", path)
    assert Address.parse(address.uri) == address
    assert address.uri.isascii()
    assert not set(address.uri) & set("'\" \n?#")


def test_raw_and_encoded_names_are_one() -> None:
    assert Address.parse("S3://b/a b/c%20d.mp4").uri == Address.parse("s3://b/a%20b/c d.mp4").uri
    assert Address.parse("s3://b/a b").uri == "s3://b/a%20b"
    assert (
        Address.parse("abfss://box@account.dfs.core.windows.net/a").root == "abfss://box@account.dfs.core.windows.net"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://key:SECRET@b/a.mp4", "user name or password"),
        ("s3://SECRET@b/a.mp4", "user name or password"),
        ("abfs://key:SECRET@b/a.mp4", "user name or password"),
        ("s3://b/a.mp4?token=SECRET", "write it as %3F"),
        ("s3://b/a.mp4#SECRET", "write it as %23"),
        ("https://u:SECRET@example.org/a.mp4", "user name or password"),
        ("https://example.org/a.mp4", "cannot be listed"),
        ("a.mp4", "a URI such as"),
    ],
)
def test_refusals_say_why_and_tell_no_secret(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Address.parse(text)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b", True), ("file:///a", True), ("memory://a/b", True), ("C://a", False), ("/a/b", False), ("a:b", False)],
)
def test_what_is_an_address(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_s3_is_listed_and_read(bucket: Path) -> None:
    touch(
        bucket, "clips/b.MP4", "clips/deep/a b.mov", "clips/notes.txt", "clips/.hidden.mp4", "clips/.no/c.mp4", "d.mp4"
    )
    listing = find(["s3://b/clips"])
    assert sorted(listing.files) == ["s3://b/clips/b.MP4", "s3://b/clips/deep/a%20b.mov"]
    assert listing.roots == ["s3://b/clips/"]
    address = Address.parse("s3://b/clips/deep/a%20b.mov")
    store = open_store(address)
    assert store.state(address) == listing.files[address.uri] == FileState(18, s3.MOMENT * 10**9)
    assert store.open(address).read(100) == b"x" * 18
    assert listing.knows("s3://b/clips/gone.mp4")
    assert not listing.knows("s3://b/clips2/a.mp4")


def test_a_whole_bucket_and_a_named_file(bucket: Path) -> None:
    touch(bucket, "a.mp4", "b.gz")
    assert sorted(find(["s3://b"]).files) == ["s3://b/a.mp4"]
    listing = find(["s3://b/b.gz"])
    assert (sorted(listing.files), listing.roots) == (["s3://b/b.gz"], [])
    address = Address.parse("s3://b/b.gz")
    assert open_store(address).open(address).read(9) == b"xxxx"  # as it is, whatever its name says


def test_what_is_not_there_is_refused(bucket: Path, memory: Any) -> None:
    for uri in ("s3://b/none", "memory://none/a.mp4"):
        with pytest.raises(ValueError, match=f"'{uri}' does not exist"):
            find([uri])
    with pytest.raises(FileNotFoundError):
        open_store(address := Address.parse("s3://b/none.mp4")).state(address)


def test_fsspec_reads_what_pyarrow_does_not(memory: Any) -> None:
    memory.pipe("/box/a b.mp4", b"xyz")
    memory.pipe("/box/c.txt", b"")
    listing = find(["memory://box"])
    [(uri, state)] = listing.files.items()
    assert uri == "memory://box/a%20b.mp4"
    assert abs(state.mtime_ns / 1e9 - datetime.now(UTC).timestamp()) < 100
    address = Address.parse(uri)
    store = open_store(address)
    assert (store.state(address), store.open(address).read()) == (state, b"xyz")


def test_a_given_file_system_is_used(tmp_path: Path, memory: Any) -> None:
    touch(tmp_path, "box/a.mp4")
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    listing = find(["s3://box"], filesystem=local)
    assert listing.files == {"s3://box/a.mp4": FileState(9, (tmp_path / "box/a.mp4").stat().st_mtime_ns)}
    memory.pipe("/box/b.mp4", b"xyz")
    assert list(find(["gs://box"], filesystem=memory).files) == ["gs://box/b.mp4"]
    with pytest.raises(ValueError, match="filesystem: got a str"):
        find(["s3://box"], filesystem="s3")


@pytest.mark.parametrize("scheme", ["nosuch", "box"])
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match=f"neither pyarrow nor fsspec reads '{scheme}'"):
        find([f"{scheme}://a/b.mp4"])


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"mtime": 1.5}, 1_500_000_000),
        ({"LastModified": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)}, s3.MOMENT * 10**9),
        ({"updated": "2023-11-14T22:13:20Z"}, s3.MOMENT * 10**9),
        ({"mtime": 1e20}, FileState(0, round(1e20 * 1e9)).mtime_ns),
        ({"mtime": float("nan")}, UNKNOWN_TIME),
        ({"LastModified": "yesterday"}, UNKNOWN_TIME),
        ({}, UNKNOWN_TIME),
    ],
)
def test_times_as_file_systems_tell_them(info: dict[str, Any], expected: int) -> None:
    class Timed(fsspec.AbstractFileSystem):
        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 3, "type": "file", **info}

    assert open_store(address := Address("timed", "", "a"), Timed()).state(address) == FileState(3, expected)


def test_times_without_a_zone_are_the_same_on_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed(fsspec.AbstractFileSystem):
        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 3, "type": "file", "modified": datetime(2023, 11, 14, 22, 13, 20)}

    store, states = open_store(Address("timed", "", "a"), Timed()), []
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        states.append(store.state(Address("timed", "", "a")))
    monkeypatch.undo()
    time.tzset()
    assert states == 2 * [FileState(3, s3.MOMENT * 10**9)]


ODD = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.datetimes())


@settings(deadline=None)
@given(name=st.text(min_size=1, max_size=9), size=ODD, mtime=ODD)
def test_whatever_a_store_tells_of_one_file_the_others_are_listed(name: str, size: Any, mtime: Any) -> None:
    class Odd(fsspec.AbstractFileSystem):
        cachable = False

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 0, "type": "directory"}

        def find(self, path: str, **_: Any) -> dict[str, Any]:
            odd = {"type": "file", "size": size, "mtime": mtime}
            return {f"box/a{name}.mp4": odd, "box/fine.mp4": {"type": "file", "size": 3, "mtime": 1}}

    listing = find(["odd://box"], filesystem=Odd())
    assert listing.files["odd://box/fine.mp4"] == FileState(3, 10**9)
    for uri in {*listing.files, *listing.unreadable}:
        assert uri.isascii()
    for uri, state in listing.files.items():
        assert Address.parse(uri).uri == uri
        pa.array([state.size, state.mtime_ns], pa.int64())


def test_names_that_are_not_utf_8_keep_their_bytes() -> None:
    address = Address("s3", "box", os.fsdecode(b"\xff\xfe.mp4"))
    assert address.uri == "s3://box/%FF%FE.mp4"
    assert Address.parse(address.uri) == address


def test_messages_of_stores_lose_their_secrets() -> None:
    text = clean("GET\nhttps://u:SECRET@host/a?X-Signature=SECRET failed for 's3://SECRET@b/c?d=SECRET' " + "x" * 500)
    assert "SECRET" not in text
    assert "https://...@host/a?..." in text
    assert len(text) == 400
    assert "\n" not in text
