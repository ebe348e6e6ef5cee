"""A client of `vidembed serve`: what `vidembed search --server` asks."""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

import vidembed
from vidembed.cli import options as cli
from vidembed.cli.serve import KEY_VARIABLE
from vidembed.errors import ServerRefusedError

if TYPE_CHECKING:
    from vidembed.index import Hits, SearchOptions

T = TypeVar("T")

TIMEOUT_S = 90.0  # the server gives a request up after 60 s by itself, and says more than a client could
MAX_ANSWER_BYTES = 2**24
_MAX_MESSAGE = 600  # characters of an error that are shown; as many as the server sends


@dataclass(frozen=True)
class Server:
    """A running `vidembed serve`.

    Nothing but its address is connected to: redirections are not followed. A loopback address is not asked through a
    proxy, which would see the key.

    Attributes:
        url: Its address, such as `http://127.0.0.1:8000`; of one behind a proxy, with the path that the proxy gives it.
        api_key: What requests bear; None for nothing.
        timeout_s: How long an answer may take, seconds.

    Raises:
        ValueError: One of them cannot be used.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)  # it is in no log
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        """Check the values."""
        what = "expected an address such as http://127.0.0.1:8000"
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"server: got {self.url!r} ({error}); {what}") from error
        if "@" in parts.netloc:  # not shown: it may be a password
            raise ValueError(f"server: the address has a user name; leave it out, and set {KEY_VARIABLE}")
        plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or not plain:
            raise ValueError(f"server: got {self.url!r}; {what}")
        key = self.api_key
        if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
            raise ValueError(
                f"{KEY_VARIABLE}: it must be printable ASCII and not empty; set it to the key of the server"
            )
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"timeout: got {self.timeout_s}; expected seconds above 0")

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @classmethod
    def named(cls, url: str, timeout_s: float | None = None) -> Server:
        """Return the server at an address, with the key of the environment."""
        key = os.environ.get(KEY_VARIABLE) or None
        server = cls(url, key, TIMEOUT_S if timeout_s is None else timeout_s)
        if key is not None and urlsplit(url).scheme == "http" and not server.is_loopback:
            cli.say(f"Warning: {url} is not encrypted, so others on the network can read {KEY_VARIABLE}. Use https.")
        return server

    def search(self, options: SearchOptions, k: int, rerank: int | None, words: Sequence[str]) -> Iterator[Hits]:
        """Yield the hits of each query, as its answer comes.

        Raises:
            ServerRefusedError: The server takes no such request, or it is no `vidembed serve`.
            ValueError: It does not take a query.
            OSError: It cannot be reached, fails, or has too much to do.
        """
        body: dict[str, object] = {"k": k, "rerank": rerank, "merge": options.merge, "around": options.around}
        if options.by != "video":  # which earlier servers know nothing else of
            body["by"] = options.by
        if (keep := options.keep) is not None:
            where = [f"{each.column} {each.compare} {each.value}" for each in keep.where]
            body |= {"path": keep.path, "after": keep.after, "before": keep.before, "where": where}
        for query in words:
            status, content = self._post("/search", {"q": query, **body})
            answer = _parsed(content)
            if status != http.HTTPStatus.OK:
                raise self._refusal(status, answer)
            try:
                yield _hits(answer)
            except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
                raise self._stranger("without valid hits") from error

    def _post(self, path: str, body: object) -> tuple[int, bytes]:
        """Return the status and the content of an answer."""
        headers = {"Content-Type": "application/json", "User-Agent": f"vidembed/{vidembed.__version__}"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address = self.url.rstrip("/") + path
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - of http or https
        opener = urllib.request.OpenerDirector()  # a bare one returns every status, and follows no redirection
        proxies = urllib.request.ProxyHandler({} if self.is_loopback else None)
        for handler in (proxies, urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
            opener.add_handler(handler)
        until = time.monotonic() + self.timeout_s
        content = b""
        try:
            with opener.open(request, timeout=self.timeout_s) as answer:
                while part := answer.read1(2**16):
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        raise self._stranger(f"with more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > until:
                        raise TimeoutError
                if 300 <= answer.status < 400:
                    to = answer.headers.get("Location")
                    message = f"redirects to {to!r}, which is not followed; give that address"
                    raise ServerRefusedError(f"server: {self.url!r} {message}")
                return int(answer.status), content
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # of an URLError, what the system said
            if isinstance(reason, TimeoutError):
                reason = f"no answer within {self.timeout_s:g} s; use a longer --timeout"
            said = f"{type(reason).__name__}" if isinstance(reason, http.client.HTTPException) else str(reason)
            raise OSError(f"server: {self.url!r} does not answer: {said}") from error

    def _refusal(self, status: int, answer: Any) -> Exception:
        """Return the error for an answer that is none of hits."""
        try:
            said = answer["error"]
            message, param = str(said["message"])[:_MAX_MESSAGE], said.get("param")
        except (TypeError, KeyError, AttributeError):
            if status < 500:
                return self._stranger(f"{status} in a form of its own")
            message, param = "no reason given", None
        if status >= 500 or status in {408, 429}:
            return OSError(f"server: {self.url!r} answered {status}: {message}")
        if param == "q":
            return ValueError(message.replace("q:", "query:", 1))
        hint = f"; the key is read from {KEY_VARIABLE}" if status == http.HTTPStatus.UNAUTHORIZED else ""
        return ServerRefusedError(f"server: {self.url!r} answered {status}: {message}{hint}")

    def _stranger(self, how: str) -> ServerRefusedError:
        where = "give the address that `vidembed serve` prints when it starts"
        return ServerRefusedError(f"server: {self.url!r} answered {how}, so it is not a vidembed server; {where}")


def _parsed(content: bytes) -> Any:
    """Return what JSON holds, or None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _hits(answer: Any) -> Hits:
    """Return the hits of an answer as a search here gives them; an error of several kinds if there are none."""
    from vidembed.index.hits import Hit, Hits, Method
    from vidembed.index.table import name_of

    method = _filled(Method, answer["method"])
    hits = Hits([replace(_filled(Hit, each), recall=method.recall) for each in answer["hits"]], method)
    for hit in hits:
        name_of(hit.uri)  # which is shown
    return hits


def _filled(kind: type[T], found: Any) -> T:
    """Make a dataclass of the values of its fields; TypeError or ValueError for one of another type."""
    values = {}
    for name, hint in get_type_hints(kind).items():
        value = found.get(name)
        if value is None:
            continue
        types = get_args(hint) or (hint,)
        if float in types and type(value) is int:
            value = float(value)
        if type(value) not in types and value not in get_args(types[0]):
            raise TypeError(f"{name}: got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: got {value}")
        values[name] = value
    return kind(**values)
