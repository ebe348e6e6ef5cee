"""Makes small files that declare, or inflate to, much more than they hold."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def box(kind: bytes, *parts: bytes) -> bytes:
    """An MP4 box."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    """An MP4 box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def track(
    *,
    size: tuple[int, int] = (64, 64),
    codec: bytes = b"raw ",
    count: int = 1,
    sample_size: int = 0,
    sizes: Sequence[int] = (),
    sound: bool = False,
    tick: int = 1,
    timescale: int = 1000,
    length: int = 1000,
) -> bytes:
    """A track of an MP4 file, whose samples lie one after another from byte 36 on.

    Args:
        size: Declared width and height.
        codec: Of the sample entry.
        count: Samples declared, of `sample_size` bytes each; not with `sizes`.
        sample_size: Bytes.
        sizes: Of each sample, bytes.
        sound: Whether it is of sound.
        tick: Ticks that every sample lasts.
        timescale: Ticks a second.
        length: Ticks of the track, as declared.
    """
    count = len(sizes) or count
    if sound:
        rest = struct.pack(">HHHHI", 1, 16, 0, 0, 48000 << 16)
        entry = box(codec, bytes(6), struct.pack(">H", 1), bytes(8), rest)
    else:
        rest = struct.pack(">IIIH", 0x480000, 0x480000, 0, 1) + bytes(32) + struct.pack(">Hh", 24, -1)
        entry = box(codec, bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", *size), rest)
    stbl = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1), entry),
        full(b"stts", struct.pack(">III", 1, count, tick)),
        full(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),
        full(b"stsz", struct.pack(f">II{len(sizes)}I", 0 if sizes else sample_size, count, *sizes)),
        full(b"stco", struct.pack(">II", 1, 36)),
    )
    media = full(b"smhd", bytes(4)) if sound else full(b"vmhd", bytes(8), flags=1)
    minf = box(b"minf", media, box(b"dinf", full(b"dref", struct.pack(">I", 1), full(b"url ", flags=1))), stbl)
    mdhd = full(b"mdhd", struct.pack(">IIIIHH", 0, 0, timescale, length, 0x55C4, 0))
    hdlr = full(b"hdlr", bytes(4), b"soun" if sound else b"vide", bytes(12), b"x\0")
    shown = struct.pack(">II", size[0] << 16, size[1] << 16)
    tkhd = full(b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, length), bytes(16), _MATRIX, shown, flags=3)
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf))


def movie(*parts: bytes, data: bytes = bytes(64), after: bytes = b"") -> bytes:
    """An MP4 file: its data, then its header with `parts`, then whatever comes after."""
    head = struct.pack(">IIII", 0, 0, 1000, 1000) + struct.pack(">IH", 0x10000, 0x100) + bytes(10)
    mvhd = full(b"mvhd", head, _MATRIX, bytes(24), struct.pack(">I", 2))
    return box(b"ftyp", b"isom", bytes(4), b"isommp41qt  ") + box(b"mdat", data) + box(b"moov", mvhd, *parts) + after


def fragment(count: int) -> bytes:
    """A fragment of one run of `count` samples, which take no byte each to declare."""
    run = full(b"trun", struct.pack(">I", count))
    return box(b"moof", full(b"mfhd", bytes(4)), box(b"traf", full(b"tfhd", struct.pack(">I", 1)), run))


def metadata(kind: bytes, count: int) -> bytes:
    """A box of metadata that declares `count` entries."""
    handler = full(b"hdlr", bytes(4), b"mdta", bytes(12), b"\0")
    return full(b"meta", handler, full(kind, struct.pack(">I", count), version=kind == b"iinf"))


def compressed_header(size: int, body: bytes = b"") -> bytes:
    """A QuickTime file whose header is compressed and inflates to `body`, or to `size` zeros."""
    packer = zlib.compressobj(1)
    data = packer.compress(body)
    for _ in range(0 if body else size >> 20):
        data += packer.compress(bytes(2**20))
    data += packer.flush()
    cmov = box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", size), data))
    return box(b"ftyp", b"qt  ", bytes(4)) + box(b"mdat", bytes(64)) + box(b"moov", cmov)


def png(width: int, height: int) -> bytes:
    """A black picture, a byte a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    line = bytes(1 + width)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """A GIF of a given canvas, whose frames set one pixel each."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


def jpeg(shade: int, size: tuple[int, int] | None = None) -> bytes:
    """A grey picture of 64x64 pixels, whose header claims another `size`."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, shade, shade)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    if size is not None:
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", size[1], size[0])
    return bytes(data)
