"""A server that speaks as much of S3 as listing and reading takes, over a folder; with it, a real client is tested."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_LIST = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>'
    "<Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
    "{contents}</ListBucketResult>"
)
_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>&quot;0&quot;</ETag><Size>{size}</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)
MOMENT = 1_700_000_000  # seconds; every object was last written then


class Handler(BaseHTTPRequestHandler):
    """Answers for the folder of its server; a bucket is a folder in it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Tell of a bucket or an object."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """List a bucket, or give an object or a range of it."""
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        if "list-type" in query:
            self._list(unquote(parts.path).strip("/"), query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        else:
            self._answer(body=True)

    def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
        root: Path = self.server.root / bucket  # type: ignore[attr-defined]
        keys = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        inside, folders = [], set()
        for key in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                inside.append(key)
        contents = "".join(
            _ENTRY.format(key=escape(key), time="2023-11-14T22:13:20.000Z", size=(root / key).stat().st_size)
            for key in inside
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders))
        body = _LIST.format(bucket=bucket, prefix=escape(prefix), count=len(inside), contents=contents).encode()
        self._send(200, body, {"Content-Type": "application/xml"}, body=True)

    def _answer(self, *, body: bool) -> None:
        path: Path = self.server.root / unquote(urlsplit(self.path).path).lstrip("/")  # type: ignore[attr-defined]
        self.server.asked.append((self.command, path.name))  # type: ignore[attr-defined]
        if path.parent == self.server.root and path.is_dir():  # type: ignore[attr-defined]
            self._send(200, b"", {"x-amz-bucket-region": "us-east-1"}, body=body)
        elif not path.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>", {}, body=body)
        else:
            data = path.read_bytes()
            headers = {"ETag": '"0"', "Last-Modified": formatdate(MOMENT, usegmt=True), "Accept-Ranges": "bytes"}
            status, size = 200, len(data)
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                data = data[int(first) : int(last) + 1 if last else None]
                headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{size}"
                status = 206
            self._send(status, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve the folders in `root` as buckets; yield host and port, and what is asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.asked = root, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
