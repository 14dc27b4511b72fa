"""A bucket of objects behind S3's protocol, to be read: blocks of an object, and a refusal in the server's own words.

Facts: pyarrow.fs.S3FileSystem, with the AWS SDK below it: it tries each request again by itself, with growing jittered waits; a
connection on which nothing comes is given up after `request_timeout`, on Linux too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import pyarrow.fs as fs

from tapeline.errors import Refused, Unavailable
from tapeline.providers.session import without
from tapeline.secret import Secret

#: One request each.
_BLOCK: Final = 8 * 1024 * 1024
_TIMEOUT_S: Final = 10.0
_TRIES: Final = 6
#: The SDK's words for what asking again cannot change.
_REFUSALS: Final = frozenset(
    {
        "ACCESS_DENIED",
        "ACCOUNT_PROBLEM",
        "INVALID_ACCESS_KEY_ID",
        "INVALID_CLIENT_TOKEN_ID",
        "INVALID_SIGNATURE",
        "MISSING_AUTHENTICATION_TOKEN",
        "NO_SUCH_BUCKET",
        "OPT_IN_REQUIRED",
        "SIGNATURE_DOES_NOT_MATCH",
        "UNRECOGNIZED_CLIENT",
        "VALIDATION",
    }
)


class S3Reader:
    """One bucket, by one key. Its methods raise Refused, Unavailable; a path begins with a slash."""

    def __init__(
        self,
        url: str,
        name: str,
        key: Secret,
        secret: Secret,
        *,
        ca_file: str = "",
        sleep: Callable[[float], object],
        timeout_s: float = _TIMEOUT_S,
        tries: int = _TRIES,
    ) -> None:
        """`url`: scheme and host of the server. `ca_file`: in place of the system's. `sleep` gives True where everything is to end."""
        self._url, self._name, self._secrets, self._sleep = url.rstrip("/"), name, (key, secret), sleep
        self._objects = fs.S3FileSystem(
            access_key=key.reveal(),
            secret_key=secret.reveal(),
            region="us-east-1",  # without one the SDK would go and look for it
            endpoint_override=self._url,
            connect_timeout=timeout_s,
            request_timeout=timeout_s,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=tries),
            tls_ca_file_path=ca_file or None,
        )

    def version(self, path: str) -> str | None:
        """What changes when the object is replaced; None where there is none."""
        with self._told(path), suppress(FileNotFoundError), self._objects.open_input_file(f"{self._name}{path}") as found:
            return _version(found.metadata())
        return None

    def blocks(self, path: str) -> Iterator[bytes]:
        """An object from beginning to end."""
        with self._told(path):
            found = self._objects.open_input_file(f"{self._name}{path}")
        with found:
            left = found.size()
            while left:
                if self._sleep(0.0) is True:
                    raise Unavailable(f"{self._url}{path}: stopped while it was read.")
                with self._told(path):
                    block = found.read(_BLOCK)
                if not block:
                    raise Unavailable(f"{self._url}{path} ends {left} bytes before its end. Try again later.")
                left -= len(block)
                yield block

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Errors of the SDK as ours."""
        try:
            yield
        except OSError as error:
            said = without(str(error), *self._secrets)
            if _code(said) not in _REFUSALS:
                raise Unavailable(f"{self._url}{path}: {said}. It was tried again and again; try later.") from None
            raise Refused(f"{self._url}{path} was refused: {self._in_words(path) or said}. Asking again cannot help.") from None

    def _in_words(self, path: str) -> str:
        """Why something was refused for whose refusal there are no words (those for a head have none); empty where that stays untold."""
        folder = path.rpartition("/")[0]
        try:
            self._objects.get_file_info(fs.FileSelector(f"{self._name}{folder}"))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return without(str(error), *self._secrets)
        return ""


def _code(said: str) -> str:
    found = re.search(r"AWS Error ([A-Z_]+)", said)
    return found[1] if found else ""


def _version(metadata: dict[bytes | str, bytes]) -> str:
    """The ETag, or the time of publishing and the size, without what is no letter or digit."""
    told = {str(name): value.decode("ascii", "replace") for name, value in metadata.items()}
    text = told.get("ETag") or f"{told.get('Last-Modified', '')}-{told.get('Content-Length', '')}"
    return re.sub(r"[^0-9A-Za-z-]", "", text) or "unknown"
