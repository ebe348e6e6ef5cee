"""Fetching a file from an http(s) address: bounded in bytes, time and redirections, and from public addresses alone."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import string
import tempfile
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import IO, TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import quote, urljoin, urlsplit

from vidembed.errors import EmptyFile, InvalidVideoInput, VideoError, VideoNotFound, VideoPermission, VideoTooLarge
from vidembed.video.clip import Deadline, DecodeLimits

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_REDIRECTS = 5  # redirections of one download that are followed (our choice)
CONNECT_S = 10.0  # seconds to connect to one address (our choice)
STALL_S = 60.0  # seconds after which a server that sends nothing is given up (our choice)

UrlAccess: TypeAlias = bool | Collection[str]
"""What may be fetched. ``False``: nothing. ``True``: from every host at a public address. Names of hosts: from these
alone, at whatever address they are, so that an internal host can be read and no other one is reached."""

_CHUNK = 2**20
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(r"[a-z0-9._:-]+")

# IANA's special-purpose registries (https://www.iana.org/assignments/iana-ipv4-special-registry), multicast and the
# reserved block. Written out, since what `ipaddress` calls global has changed between versions of Python.
_NOT_PUBLIC_V4: Final = (
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8")),
    IPv4Network("168.63.129.16/32"),  # Azure to its machines (Microsoft: "What is IP address 168.63.129.16?")
    IPv4Network("169.254.0.0/16"),  # link-local, and the metadata services of clouds
    *map(IPv4Network, ("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16")),
    *map(IPv4Network, ("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
)
# https://www.iana.org/assignments/iana-ipv6-special-registry; 2000::/3 is all of the global unicast space.
_GLOBAL_V6: Final = IPv6Network("2000::/3")
# Teredo and 6to4 among them
_NOT_PUBLIC_V6: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


def is_public(address: str) -> bool:
    """Whether an IP address, as the system writes it (``"8.8.8.8"``, ``"fe80::1%eth0"``), is of the public internet."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        found = IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else found.ipv4_mapped or found
    if isinstance(found, IPv4Address):
        return not any(found in network for network in _NOT_PUBLIC_V4)
    return found in _GLOBAL_V6 and not any(found in network for network in _NOT_PUBLIC_V6)


def fetch(url: str, item: str, limits: DecodeLimits, *, allow: UrlAccess = True) -> IO[bytes]:
    """Fetch an http or https address, without cookies, credentials or proxies, into a temporary file."""
    if isinstance(allow, str):
        raise ValueError(f"allow_url={allow!r}: expected True, False or a list of host names, such as [{allow!r}]")  # noqa: TRY004
    names = allow if isinstance(allow, Collection) else None
    hosts = None if names is None else frozenset(name.lower().strip("[]").removesuffix(".") for name in names)
    deadline = Deadline(limits.timeout_s, item, done="fetched", remedy="download it yourself")
    target = _Target.of(url, item)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with _answer(target, item, hosts, deadline) as answer:
                if answer.status not in _REDIRECTIONS:
                    return _kept(answer, item, limits.max_bytes)
                target = target.redirected(answer, item)
    except TimeoutError as error:
        deadline.remaining()
        raise VideoNotFound(item, "cannot be fetched (the server did not answer, or stopped answering)") from error
    except http.client.HTTPException as error:  # its words can be the server's own
        raise VideoNotFound(item, f"cannot be fetched (no valid HTTP answer: {type(error).__name__})") from error
    except OSError as error:
        raise VideoNotFound(item, f"cannot be fetched ({error})") from error
    raise VideoNotFound(item, f"redirected more than {MAX_REDIRECTS} times")


@dataclass(frozen=True)
class _Target:
    """An address to fetch, taken apart and looked up once: what is checked is what is connected to."""

    url: str
    secure: bool  # https
    host: str  # in ASCII, without brackets and a last dot
    port: int
    path: str  # and query, percent-encoded

    @classmethod
    def of(cls, url: str, item: str, verb: str = "it is") -> _Target:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode("idna").decode("ascii").removesuffix(".")
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
            path = quote(parts.path, safe=string.punctuation) or "/"
            query = quote(parts.query, safe=string.punctuation)
        except ValueError as error:
            raise InvalidVideoInput(item, f"{verb} no valid address ({type(error).__name__})") from error
        if parts.scheme not in {"http", "https"}:
            raise InvalidVideoInput(item, f"{verb} an address that is neither http nor https; only these are fetched")
        if "@" in parts.netloc:
            raise InvalidVideoInput(item, f"{verb} an address with a user name; download the video yourself")
        if not _HOST.fullmatch(host):
            raise InvalidVideoInput(item, f"{verb} an address without a valid host name")
        return cls(url, parts.scheme == "https", host, port, f"{path}?{query}" if query else path)

    def redirected(self, answer: http.client.HTTPResponse, item: str) -> _Target:
        place = quote(answer.headers.get("Location", ""), safe=string.punctuation, encoding="latin-1", errors="replace")
        if not place:
            raise VideoNotFound(item, f"the server answered {answer.status} without a new address")
        try:
            url = urljoin(self.url, place)
        except ValueError:
            url = place  # refused as it is taken apart
        target = _Target.of(url, item, "it redirects to")
        if self.secure and not target.secure:
            raise InvalidVideoInput(
                item, "it redirects from https to http, which is not followed; give the https address of the file"
            )
        return target

    def request(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        named = host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"
        lines = [f"GET {self.path} HTTP/1.1", f"Host: {named}", "User-Agent: vidembed", "Accept: */*"]
        lines += ["Accept-Encoding: identity", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("ascii")


class _SocketReader(io.RawIOBase):
    """Reads a socket. No single read lasts longer than the deadline or `STALL_S`."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._sock.settimeout(self._deadline.remaining(STALL_S))
        return self._sock.recv_into(buffer)

    def makefile(self, _mode: str) -> IO[bytes]:
        """Return itself, as `http.client` asks a socket for it."""
        return io.BufferedReader(self)


@contextmanager
def _answer(
    target: _Target, item: str, hosts: frozenset[str] | None, deadline: Deadline
) -> Iterator[http.client.HTTPResponse]:
    """Ask for ``target`` and yield the answer, with its headers read."""
    with ExitStack() as stack:
        sock: socket.socket = stack.enter_context(connect(_addresses(target, item, hosts), deadline))
        sock.settimeout(deadline.remaining(STALL_S))
        if target.secure:
            sock = stack.enter_context(ssl.create_default_context().wrap_socket(sock, server_hostname=target.host))
            sock.settimeout(deadline.remaining(STALL_S))
        sock.sendall(target.request())
        answer = http.client.HTTPResponse(cast("socket.socket", _SocketReader(sock, deadline)), method="GET")
        stack.callback(answer.close)
        answer.begin()
        yield answer


SocketName: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]"
Address: TypeAlias = "tuple[socket.AddressFamily, socket.SocketKind, int, str, SocketName]"  # of `socket.getaddrinfo`


def _addresses(target: _Target, item: str, hosts: frozenset[str] | None) -> Sequence[Address]:
    """Look up a host, and return its addresses if it may be reached. Messages do not show them: they can be secret."""
    if hosts is not None and target.host not in hosts:
        raise InvalidVideoInput(item, f"the host {target.host!r} is not in allow_url; add it there if you trust it")
    scheme = "https" if target.secure else "http"
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(target.host):
        reason = f"a proxy is set for {scheme}; it is not used, because addresses behind a proxy cannot be checked"
        remedy = f"add {target.host} to no_proxy if it is reachable without a proxy, or download the video yourself"
        raise InvalidVideoInput(item, f"{reason}; {remedy}")
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    if hosts is None and not all(is_public(str(address[0])) for *_, address in found):
        reason = f"the host {target.host!r} is at a private, local or reserved address"
        remedy = f"if you trust it, allow it by name: allow_url=[{target.host!r}]"
        raise InvalidVideoInput(item, f"{reason}; {remedy}")
    return found


def connect(addresses: Sequence[Address], deadline: Deadline) -> socket.socket:
    """Connect to the first of some checked addresses that answers."""
    failed = OSError("the host has no address")
    for family, kind, protocol, _, address in addresses:
        timeout_s = deadline.remaining(CONNECT_S)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
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
                reason = (
                    f"cannot be stored in {tempfile.gettempdir()!r} ({error.strerror}); free some space, or set TMPDIR"
                )
                raise VideoError(item, reason) from error
        if declared is not None and count < declared:
            raise OSError(f"the connection closed after {count} of {declared} bytes")
        if not count:
            raise EmptyFile(item, "the server answered with 0 bytes")
        file.seek(0)
        stack.pop_all()
        return file
