"""Fetching a file from an http(s) address: bounded in bytes, time and redirections, and from public addresses alone.

A name is looked up once; the addresses are checked, and a checked one is connected to, so that no second lookup can
lead elsewhere. The same holds for every redirection.
"""

from __future__ import annotations

import http.client
import io
import math
import re
import socket
import ssl
import string
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import quote, urljoin, urlsplit

from vidembed.errors import (
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


# IANA's special-purpose registries (https://www.iana.org/assignments/iana-ipv4-special-registry), multicast and the
# reserved block. Written out, since what `ipaddress` calls global has changed between versions of Python.
_NOT_PUBLIC_V4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure to its machines (Microsoft: "What is IP address 168.63.129.16?")
            "169.254.0.0/16",  # link-local, and the metadata services of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# https://www.iana.org/assignments/iana-ipv6-special-registry; 2000::/3 is all of the global unicast space.
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))  # Teredo and 6to4 among them
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Not so are private, loopback, link-local, multicast, reserved and unspecified ones, those for documentation and
    tests, and IPv6 addresses that hold such an IPv4 address (mapped, NAT64). 6to4 and Teredo addresses never are.

    Args:
        address: As the system writes it, such as ``"93.184.216.34"``, ``"fe80::1%eth0"``.

    Raises:
        ValueError: It is none.
    """
    return _is_public(ip_address(address.partition("%")[0]))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.ipv4_mapped is not None:
        return _is_public(address.ipv4_mapped)
    if address in _NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


MAX_DOWNLOAD_BYTES = 2 * 2**30
"""Bytes. Default limit of one download (2 GiB; our choice)."""
MAX_REDIRECTS = 5
"""Redirections of one download that are followed (our choice)."""
CONNECT_S = 10.0
"""Seconds to connect to one address (our choice)."""
STALL_S = 60.0
"""Seconds after which a server that sends nothing is given up (our choice)."""

UrlAccess: TypeAlias = bool | Collection[str]
"""What may be fetched. ``False``: nothing. ``True``: from every host at a public address. Names of hosts: from these
alone, at whatever address they are, so that an internal host can be read and no other one is reached."""

_CHUNK = 2**20
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[a-z0-9._:-]+")


def fetch(url: str, item: str, *, timeout_s: float | None, max_bytes: int, allow: UrlAccess = True) -> IO[bytes]:
    """Fetch ``url`` into a temporary file, which is gone when closed.

    Bytes are kept as they come: no compression is asked for, and none is undone. No cookies, credentials or proxies
    are used; a proxy would look up the host itself, where it cannot be checked.

    Args:
        url: An http or https address.
        item: The name to use in messages.
        timeout_s: Limit on the whole download, in seconds; ``None`` for none. Looking up a name is not interrupted:
            the system's resolver has limits of its own.
        max_bytes: Limit on its size.
        allow: Where it may lead: ``True``, or names of hosts.

    Returns:
        The file, at its beginning.

    Raises:
        InvalidVideoInput: If the address, or one it redirects to, is malformed, of another scheme, or of a host that
            may not be reached; or a proxy is set.
        VideoNotFound: If the address cannot be reached or answers with an error.
        VideoPermission: If it answers 401 or 403.
        VideoTooLarge: If it is above ``max_bytes``.
        DecodeTimeout: If it takes too long.
        EmptyFile: If it holds nothing.
        ValueError: If ``allow`` is a string.
    """
    hosts = _names(allow)
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    target = _Target.of(url, item)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with _answer(target, item, hosts, end) as answer:
                if answer.status not in _REDIRECTIONS:
                    return _kept(answer, item, max_bytes)
                target = target.redirected(answer, item)
    except TimeoutError as error:
        if time.monotonic() < end:
            raise VideoNotFound(item, "cannot be fetched (the server does not answer, or fell silent)") from error
        raise DecodeTimeout(
            item, f"not fetched within timeout_s={timeout_s}; raise the limit or download it yourself"
        ) from error
    except http.client.HTTPException as error:  # its words can be the server's own
        raise VideoNotFound(item, f"cannot be fetched (no valid HTTP answer: {type(error).__name__})") from error
    except OSError as error:
        raise VideoNotFound(item, f"cannot be fetched ({error})") from error
    raise VideoNotFound(item, f"redirected more than {MAX_REDIRECTS} times")


def _names(allow: UrlAccess) -> frozenset[str] | None:
    """Return the hosts that may be reached, or ``None`` for all public ones."""
    if isinstance(allow, str):
        raise ValueError(f"allow_url={allow!r}: expected True, False or a list of host names, such as [{allow!r}]")  # noqa: TRY004
    if isinstance(allow, Collection):
        return frozenset(name.lower().strip("[]").removesuffix(".") for name in allow)
    return None


@dataclass(frozen=True)
class _Target:
    """An address to fetch.

    Attributes:
        url: All of it.
        secure: Whether it is https.
        host: In ASCII, without brackets and a last dot.
        port: Of the server.
        path: Path and query, percent-encoded.
    """

    url: str
    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str, item: str, verb: str = "it is") -> _Target:
        """Take an address apart, once: what is checked is what is connected to."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("idna").decode("ascii").removesuffix(".")
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
            path = quote(parts.path, safe=string.punctuation) or "/"
            query = quote(parts.query, safe=string.punctuation)
        except ValueError as error:
            raise InvalidVideoInput(item, f"{verb} no valid address ({type(error).__name__})") from error
        if parts.scheme not in {"http", "https"}:
            raise InvalidVideoInput(item, f"{verb} an address that is neither http nor https; no other is fetched")
        if "@" in parts.netloc:
            raise InvalidVideoInput(item, f"{verb} an address with a user name; download the video yourself")
        if not _HOST.fullmatch(host):
            raise InvalidVideoInput(item, f"{verb} an address without a valid host name")
        return cls(url, parts.scheme == "https", host, port, f"{path}?{query}" if query else path)

    def redirected(self, answer: http.client.HTTPResponse, item: str) -> _Target:
        """Return where an answer leads."""
        place = quote(answer.headers.get("Location", ""), safe=string.punctuation, encoding="latin-1", errors="replace")
        if not place:
            raise VideoNotFound(item, f"the server answered {answer.status} and does not say where it is")
        try:
            url = urljoin(self.url, place)
        except ValueError:
            url = place  # refused as it is taken apart
        target = _Target.of(url, item, "it redirects to")
        if self.secure and not target.secure:
            raise InvalidVideoInput(item, "it redirects from https to http; nothing is fetched over that")
        return target

    def request(self) -> bytes:
        """Return the request for it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        named = host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"
        lines = (
            f"GET {self.path} HTTP/1.1",
            f"Host: {named}",
            "User-Agent: vidembed",
            "Accept: */*",
            "Accept-Encoding: identity",
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class _Wire(io.RawIOBase):
    """Reads a socket, every time only until the end of all time or of patience."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read what is there."""
        self._sock.settimeout(_left(self._end, STALL_S))
        return self._sock.recv_into(buffer)

    def makefile(self, _mode: str) -> IO[bytes]:
        """Return itself, as `http.client` asks a socket for it."""
        return io.BufferedReader(self)


def _left(end: float, most: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, most)


@contextmanager
def _answer(target: _Target, item: str, hosts: frozenset[str] | None, end: float) -> Iterator[http.client.HTTPResponse]:
    """Ask for ``target`` and yield the answer, with its headers read."""
    with ExitStack() as stack:
        sock: socket.socket = stack.enter_context(_connect(_addresses(target, item, hosts), end))
        if target.secure:
            sock.settimeout(_left(end, STALL_S))
            sock = stack.enter_context(ssl.create_default_context().wrap_socket(sock, server_hostname=target.host))
        sock.settimeout(_left(end, STALL_S))
        sock.sendall(target.request())
        answer = http.client.HTTPResponse(cast("socket.socket", _Wire(sock, end)), method="GET")
        stack.callback(answer.close)
        answer.begin()
        yield answer


def _addresses(target: _Target, item: str, hosts: frozenset[str] | None) -> Sequence[tuple[Any, ...]]:
    """Look up a host, and return its addresses if it may be reached. Messages do not tell them: they can be secret."""
    if hosts is not None and target.host not in hosts:
        raise InvalidVideoInput(item, f"the host {target.host!r} is not one of those in allow_url")
    scheme = "https" if target.secure else "http"
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(target.host):
        raise InvalidVideoInput(
            item,
            f"a proxy is set for {scheme}, behind which addresses cannot be checked, so it is not used; name "
            f"{target.host} in no_proxy if it can be reached without, or download the video yourself",
        )
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    if hosts is None and not all(is_public(str(address[0])) for *_, address in found):
        raise InvalidVideoInput(
            item,
            f"the host {target.host!r} is at a private, local or reserved address; if it is the right one, allow it by "
            f"name: allow_url=[{target.host!r}]",
        )
    return found


def _connect(addresses: Sequence[tuple[Any, ...]], end: float) -> socket.socket:
    """Connect to the first of some checked addresses that answers."""
    failed = OSError("the host has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(end, CONNECT_S))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failed = error
        else:
            return sock
    raise failed


def _kept(answer: http.client.HTTPResponse, item: str, max_bytes: int) -> IO[bytes]:
    """Write the body of an answer to a temporary file."""
    if not 200 <= answer.status < 300:
        kind = VideoPermission if answer.status in {401, 403} else VideoNotFound
        raise kind(item, f"the server answered {answer.status} {http.client.responses.get(answer.status, '')}".strip())
    too_large = VideoTooLarge(item, f"larger than max_bytes={max_bytes}; raise the limit or download it yourself")
    declared, count = answer.length, 0
    if declared is not None and declared > max_bytes:
        raise too_large
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        while chunk := answer.read1(_CHUNK):
            count += len(chunk)
            if count > max_bytes:
                raise too_large
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise VideoError(
                    item, f"cannot be kept in {tempfile.gettempdir()!r} ({error.strerror}); make room, or set TMPDIR"
                ) from error
        if declared is not None and count < declared:
            raise OSError(f"the connection closed after {count} of {declared} bytes")
        if not count:
            raise EmptyFile(item, "the server answered with 0 bytes")
        file.seek(0)
        stack.pop_all()
        return file
