"""Encrypted files are called so, and not damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo import Recipe, encode
from vidembed.video import DecodePool, EncryptedVideo, Sampling, load_video, probe
from vidembed.video.trim import cut_clip

KEY = {"encryption_key": "00112233445566778899aabbccddeeff", "encryption_kid": "0123456789abcdef0123456789abcdef"}
CENC = {"encryption_scheme": "cenc-aes-ctr", **KEY}


@pytest.fixture(params=["whole", "in fragments"])
def encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An H.264 video under Common Encryption."""
    muxer = CENC if request.param == "whole" else {**CENC, "movflags": "frag_keyframe+empty_moov"}
    encode(tmp_path / "drm.mp4", Recipe(frames=30, muxer=muxer))
    return tmp_path / "drm.mp4"


def test_every_way_of_reading_says_so(encrypted: Path) -> None:
    for read in (load_video, probe, lambda path: cut_clip(path, path.with_name("cut.mp4"), 0.0)):
        with pytest.raises(EncryptedVideo, match=r"drm\.mp4: encrypted \(DRM\).* without a key"):
            read(encrypted)
    with DecodePool(workers=1) as pool, pytest.raises(EncryptedVideo, match="encrypted"):
        pool.submit(encrypted, Sampling()).layout()


def _element(name: bytes, content: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    return name + (2**56 + len(content)).to_bytes(8, "big") + content


def _content(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of an element begins and ends whose size is at `at`."""
    width = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + width], "big") - (1 << (7 * width))
    return at + width, at + width + size


def test_a_webm_with_encrypted_blocks(tmp_path: Path) -> None:
    encode(tmp_path / "clear.webm", Recipe(codec="libvpx-vp9", frames=9, options={"deadline": "realtime"}))
    data = (tmp_path / "clear.webm").read_bytes()
    key = _element(b"\x47\xe1", b"\x05") + _element(b"\x47\xe2", b"0123456789abcdef")  # AES, id of the key
    scope = _element(b"\x50\x32", b"\x01") + _element(b"\x50\x33", b"\x01")  # of frames; encryption
    encodings = _element(b"\x6d\x80", _element(b"\x62\x40", scope + _element(b"\x50\x35", key)))
    at = data.rindex(b"\x16\x54\xae\x6b")  # the tracks; their name also stands in the list of places before
    entry, after = _content(data, at + 4)
    entry += 6 * (data[entry] == 0xBF)  # a checksum
    begin, end = _content(data, entry + 1)
    track = _element(b"\xae", data[begin:end] + encodings)
    (tmp_path / "drm.webm").write_bytes(data[:at] + _element(b"\x16\x54\xae\x6b", track) + data[after:])
    assert load_video(tmp_path / "clear.webm").frames.shape[0] > 0
    with pytest.raises(EncryptedVideo):
        load_video(tmp_path / "drm.webm")
