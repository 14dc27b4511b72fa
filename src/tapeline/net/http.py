"""HTTP: the only module that sends a request. It requests a provider's pages and files within the provider's limits."""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from random import Random
from typing import BinaryIO, Final, TypeVar
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError

from tapeline.errors import Barred, DiskProblem, Refused, Unavailable
from tapeline.local.threads import concurrently
from tapeline.net.rate_limit import LONGEST_BAN_S, TOO_FAST, TOO_FAST_S, RateLimiter
from tapeline.providers.session import Check, without
from tapeline.records import NS_PER_S
from tapeline.retry.backoff import backoff
from tapeline.secret import Secret

T = TypeVar("T")
log = logging.getLogger(__name__)

_HTTP_TIMEOUT_S: Final = 10.0
#: An answer with this status or a higher one does not hold what was requested.
_NO_ANSWER: Final = 300
#: The most connections to one address that are kept open, one for each thread that sends requests at the same time.
_KEPT_OPEN: Final = 32
_HTTP_MAX_BYTES: Final = 64 * 1024 * 1024
#: The longest time to wait for an answer that is read into memory.
_ANSWER_WITHIN_S: Final = 120.0
#: How often a waiting caller checks whether it should stop.
_LOOK_EVERY_S: Final = 0.25
_DOWNLOAD_PIECE: Final = 1024 * 1024
#: Warn about an address at most once in this time.
_WARN_AGAIN_S: Final = 5.0
#: How often a request is sent if its answers are errors.
REST_TRIES: Final = 6
#: If a wait would be longer than this, the caller decides what to do.
_LONGEST_WAIT_S: Final = 300.0
#: The 4xx statuses that say nothing about the request itself: it took too long, or came too early.
_PASSING: Final = frozenset({408, 425})
#: The statuses that refuse the key, the plan or this machine's location. Every other request would be refused too.
_OF_EVERYTHING: Final = frozenset({401, 403, 451})
_RECENT: Final = "recent SIP data"
_NO_DATE_NS: Final = (1 << 63) - 1
#: Part of a refusal's text (HTTP 4xx) to the advice about it.
_REMEDIES: Final = {
    _RECENT: 'The plan includes SIP data only after 15 minutes. Set feed = "iex", or try again 15 minutes later.',
    "HTTP 401": "Check the key.",
    "HTTP 403": "Check the key and what its plan includes.",
    "HTTP 451": "The provider does not serve this machine's location.",
}


async def get(url: str, tls: ssl.SSLContext | None = None) -> bytes:
    """The body of an HTTP GET. Raises Unavailable, which names the address and the problem (such as the status), after at most 120 s."""

    def fetch() -> bytes:
        with _pool(url, tls) as pool, _opened(pool, url, {"User-Agent": "tapeline"}) as reply:
            if reply.status >= _NO_ANSWER:
                raise HTTPError(f"HTTP Error {reply.status}: {reply.reason}")
            return _whole(reply)

    if not url.startswith(("http://", "https://")):
        raise Unavailable(f"{url} is not an HTTP address. It must begin with http:// or https://.")
    try:
        # It does not run on the event loop's own threads, because the process could not exit before they end.
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            return await asyncio.wrap_future(concurrently(fetch, "http"))
    except TimeoutError:
        raise Unavailable(f"{url} did not send its whole answer within {_ANSWER_WITHIN_S:.0f} s.") from None
    except (OSError, HTTPError) as error:
        raise Unavailable(f"{url} cannot be read: {error}.") from error


def _pool(url: str, tls: ssl.SSLContext | None) -> urllib3.PoolManager:
    """A pool of connections that are kept open. They go through the proxy that the environment names for the address, if any."""
    timeout = urllib3.Timeout(_HTTP_TIMEOUT_S)
    scheme, _, host = url.partition("://")
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host.partition("/")[0]):
        return urllib3.ProxyManager(proxy, ssl_context=tls, retries=False, timeout=timeout, maxsize=_KEPT_OPEN)
    return urllib3.PoolManager(ssl_context=tls, retries=False, timeout=timeout, maxsize=_KEPT_OPEN)


@contextmanager
def _opened(pool: urllib3.PoolManager, url: str, headers: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
    """Send a GET and give the answer; the caller reads the body. Redirects are not followed, because the keys are for this address only.

    Raises ValueError if `url` is not an address, and OSError or HTTPError if the request fails."""
    if any(letter <= " " or letter == "\x7f" for letter in url):
        raise ValueError("it contains a space or a control character")
    reply = pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
    whole = False
    try:
        yield reply
        whole = True
    finally:
        if whole:
            reply.drain_conn()
            reply.release_conn()
        else:
            reply.close()  # the rest of the body may still arrive, so the connection cannot be used again


def _text_of(reply: urllib3.BaseHTTPResponse) -> str:
    try:
        return reply.read(1_000).decode("utf-8", "replace")
    except (OSError, HTTPError) as problem:
        return f"(the text of the answer did not arrive: {problem})"


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk into DiskProblem, so that it is not taken for a network problem."""
    try:
        yield
    except OSError as error:
        raise DiskProblem(
            f"{path} cannot be written: {error.strerror}. None of it was kept. Free disk space. The next attempt downloads it again."
        ) from error


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file to write. Raises DiskProblem if opening or closing fails."""
    with _kept(path):
        file = path.open("wb")
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            file.close()
        raise
    with _kept(path):
        file.close()


class _RefusedAnswer(Exception):
    """An answer with an HTTP status of 300 or more."""

    def __init__(self, code: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(code)
        self.code, self.text, self.headers = code, text, headers


def _whole(reply: urllib3.BaseHTTPResponse) -> bytes:
    body = reply.read(_HTTP_MAX_BYTES + 1)
    if len(body) > _HTTP_MAX_BYTES:
        raise HTTPError(f"the answer has more than {_HTTP_MAX_BYTES:,} bytes")
    return body


def _date_ns(text: str) -> int:
    """The end of the second (ns, UTC) that an answer's header `Date` names; a time far ahead if it names none."""
    try:
        return int(parsedate_to_datetime(text).timestamp() + 1) * NS_PER_S
    except (ValueError, OverflowError):
        return _NO_DATE_NS


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """A provider's check of its symbols, with the TLS context that the request needs."""

    check: Check
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider's REST address: scheme and host, to which each path is appended."""

    url: str
    tls: ssl.SSLContext | None = None
    #: Sent with each request. Their values are secrets.
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Statuses that come from a firewall for a short time.
    passing: Container[int] = ()


class Rest:
    """Sends a provider's REST requests within a weight a minute, and retries them if that may help. Any number of threads may use it.

    After HTTP 429 or 418 (a ban) nobody sends a request until the time that `Retry-After` or `X-RateLimit-Reset` names. After 5xx or a
    broken connection the request is retried with capped, jittered waits.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        random: Random,
        limiter: RateLimiter,
        *,
        tries: int = REST_TRIES,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`limiter` may be shared with other processes. `tries`: how often a request is sent if its answers are errors. `wall_clock` gives
        seconds since 1970, like the times in providers' headers. `sleep` returns True if it was interrupted because the caller should
        stop."""
        self._url, self._random, self._limiter, self._sleep = endpoint.url, random, limiter, sleep
        self._pool = _pool(endpoint.url, endpoint.tls)
        self._headers = {"User-Agent": "tapeline", **endpoint.headers}
        self._secrets = tuple(Secret(value.rpartition(" ")[2]) for value in endpoint.headers.values())
        self._passing = endpoint.passing
        self._tries, self._wall_clock = tries, wall_clock
        self._warned_at = -math.inf
        #: No answer can hold an event after this time (ns, UTC), because by the server's own clock it was made before.
        self.latest_ns = _NO_DATE_NS

    def get(self, path: str, weight: int) -> bytes:
        """The body of an answer. `weight` is the request's cost in the limit for a minute.

        Raises Refused if the request itself is wrong (Barred if every request would be refused), and Unavailable if retries did not help
        or the wait was interrupted."""
        return self._request(path, weight, _whole, _ANSWER_WITHIN_S)

    def download(self, path: str, weight: int, to: Path) -> None:
        """Write the body into the file `to`, however large it is. Raises as `get`, and DiskProblem if the file cannot be written."""
        with _written(to) as file:

            def copy(reply: urllib3.BaseHTTPResponse) -> None:
                with _kept(to):
                    file.seek(0)
                    file.truncate()
                while piece := reply.read(_DOWNLOAD_PIECE):
                    with _kept(to):
                        file.write(piece)

            self._request(path, weight, copy, math.inf)

    def _request(self, path: str, weight: int, read: Callable[[urllib3.BaseHTTPResponse], T], within_s: float) -> T:
        waits = backoff(self._random, cap_s=30.0)
        problem = ""
        for attempt in range(1, self._tries + 1):
            waited_s, status = self._afford(weight), "none"
            try:
                answer = self._answer(f"{self._url}{path}", read, within_s)
                status = "200"
                return answer
            except _RefusedAnswer as error:
                status = str(error.code)
                problem, wait_s = f"HTTP {error.code}: {without(error.text, *self._secrets)}", next(waits)
                if error.code in TOO_FAST:
                    wait_s = max(wait_s, self._pause_s(error.headers.get("Retry-After", ""), error.headers.get("X-RateLimit-Reset", "")))
                    self._limiter.pause(wait_s)
                    self._warn("%s%s: %s. Tapeline sends no request for %.1f s.", self._url, path, problem, wait_s)
                    continue
                if error.code in self._passing:
                    self._limiter.pause(wait_s)  # every other request to this address would get the same answer
                elif error.code < 500 and error.code not in _PASSING:
                    remedy = next((remedy for text, remedy in _REMEDIES.items() if text in problem), "A retry cannot help.")
                    kind = Barred if error.code in _OF_EVERYTHING and _RECENT not in problem else Refused
                    raise kind(f"The provider refused {self._url}{path} with {problem}. {remedy}") from None
            except (ValueError, LocationValueError) as error:
                raise Refused(f"{self._url}{path} is not a valid address: {without(str(error), *self._secrets)}.") from None
            except (OSError, HTTPError) as error:
                problem, wait_s = without(str(error), *self._secrets) or type(error).__name__, next(waits)
            finally:
                self._limiter.answered(status, waited_s)
            if attempt < self._tries:
                self._warn("%s%s: %s. Next attempt in %.1f s.", self._url, path, problem, wait_s)
                self._wait(wait_s)
        tried = "once" if self._tries == 1 else f"{self._tries} times"
        raise Unavailable(f"{self._url}{path}: {problem}. Tapeline tried {tried}. Try again later.")

    def _answer(self, url: str, read: Callable[[urllib3.BaseHTTPResponse], T], within_s: float) -> T:
        """The result of `read` on an answer. It runs on another thread, so that the caller can stop while an answer arrives slowly.

        Raises TimeoutError after `within_s`, and Unavailable if the caller should stop."""

        def ask() -> T:
            with _opened(self._pool, url, self._headers) as reply:
                if reply.status >= _NO_ANSWER:
                    raise _RefusedAnswer(reply.status, _text_of(reply), reply.headers)
                self.latest_ns = _date_ns(reply.headers.get("Date", ""))
                return read(reply)

        answer, deadline = concurrently(ask, "http"), time.monotonic() + within_s
        while not wait([answer], _LOOK_EVERY_S).done:
            if self._sleep(0.0) is True:
                raise Unavailable(f"Tapeline stopped while it waited for {self._url}.")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer is still incomplete after {within_s:.0f} s")
        try:
            return answer.result()
        finally:
            del answer  # breaks a reference cycle: the future holds the error, and the error holds this frame

    def _warn(self, text: str, *about: str | float) -> None:
        """Warn about a problem, at most every 5 s, because all requests to this address have the same problem. Every caller still gets
        the error."""
        now = self._wall_clock()
        again = 0 <= now - self._warned_at < _WARN_AGAIN_S
        if not again:
            self._warned_at = now
        log.log(logging.DEBUG if again else logging.WARNING, text, *about)

    def _pause_s(self, after: str, reset: str) -> float:
        """The seconds to pause after too many requests, from the provider's headers `Retry-After` and `X-RateLimit-Reset`."""
        if after.isdecimal():
            return min(float(after), LONGEST_BAN_S)
        if reset.isdecimal():  # capped, because the provider's clock may differ from ours; random, because others wait for the same time
            return min(float(reset) - self._wall_clock(), _LONGEST_WAIT_S - 1) + self._random.random()
        return TOO_FAST_S

    def _afford(self, weight: int) -> float:
        """Wait until the rate limit allows a request of this weight, and return how long (s). Raises Unavailable if that takes too long."""
        began = time.monotonic()
        while (early_s := self._limiter.take(weight)) > 0:
            if early_s > _LONGEST_WAIT_S:
                raise Unavailable(f"{self._url} asked for a pause: {early_s:.0f} s are left. Tapeline sends no request until then.")
            self._wait(early_s)
        return time.monotonic() - began

    def _wait(self, seconds: float) -> None:
        """Sleep. Raises Unavailable if the sleep was interrupted because the caller should stop."""
        if seconds > 0 and self._sleep(seconds) is True:
            raise Unavailable(f"Tapeline stopped while it waited for {self._url}.")
