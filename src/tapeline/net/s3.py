"""Reads objects from an S3 bucket in blocks. An error quotes the server's own text.

Facts: pyarrow.fs.S3FileSystem and the AWS SDK below it. The SDK retries each request by itself, with growing, jittered waits. It gives up
a connection on which nothing arrives for `request_timeout`, on Linux too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pyarrow.fs as fs

from tapeline.errors import Refused, Unavailable
from tapeline.providers.session import without
from tapeline.secret import Secret

#: The bytes of one request.
_BLOCK: Final = 8 * 1024 * 1024
_TIMEOUT_S: Final = 10.0
_TRIES: Final = 6
#: The SDK's codes for errors that a retry cannot change.
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


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a server, and the key that may read it."""

    #: Scheme and host of the server.
    url: str
    name: str
    key: Secret
    secret: Secret
    #: Replaces the system's certificate authorities.
    ca_file: str = ""


class S3Reader:
    """Reads one bucket. A path begins with a slash.

    Its methods raise Refused if a retry cannot help, and Unavailable for any other failure."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        sleep: Callable[[float], object],
        timeout_s: float = _TIMEOUT_S,
        tries: int = _TRIES,
    ) -> None:
        """`sleep` returns True if everything should stop."""
        self._url, self._name, self._sleep = bucket.url.rstrip("/"), bucket.name, sleep
        self._secrets = (bucket.key, bucket.secret)
        self._objects = fs.S3FileSystem(
            access_key=bucket.key.reveal(),
            secret_key=bucket.secret.reveal(),
            region="us-east-1",  # without a region the SDK would send requests to find one
            endpoint_override=self._url,
            connect_timeout=timeout_s,
            request_timeout=timeout_s,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=tries),
            tls_ca_file_path=bucket.ca_file or None,
        )

    def version(self, path: str) -> str | None:
        """A text that changes when the object is replaced; None if the object does not exist."""
        with self._errors(path), suppress(FileNotFoundError), self._objects.open_input_file(f"{self._name}{path}") as file:
            return _version(file.metadata())
        return None

    def blocks(self, path: str) -> Iterator[bytes]:
        """The blocks of an object, from its beginning to its end. Also raises Unavailable if `sleep` says to stop."""
        with self._errors(path):
            file = self._objects.open_input_file(f"{self._name}{path}")
        with file:
            left = file.size()
            while left:
                if self._sleep(0.0) is True:
                    raise Unavailable(f"Tapeline stopped while it read {self._url}{path}.")
                with self._errors(path):
                    block = file.read(_BLOCK)
                if not block:
                    raise Unavailable(f"{self._url}{path} ended {left} bytes too early. Try again later.")
                left -= len(block)
                yield block

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turn an error of the SDK into Refused or Unavailable."""
        try:
            yield
        except OSError as error:
            message = without(str(error), *self._secrets)
            if _code(message) not in _REFUSALS:
                raise Unavailable(f"{self._url}{path}: {message}. Tapeline tried several times. Try again later.") from None
            raise Refused(f"The provider refused {self._url}{path}: {self._refusal_text(path) or message}. A retry cannot help.") from None

    def _refusal_text(self, path: str) -> str:
        """The server's own text for a refusal; empty if it gives none.

        The answer to a HEAD request has no text. So this lists the object's folder, and returns the text of that refusal."""
        folder = path.rpartition("/")[0]
        try:
            self._objects.get_file_info(fs.FileSelector(f"{self._name}{folder}"))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return without(str(error), *self._secrets)
        return ""


def _code(message: str) -> str:
    match = re.search(r"AWS Error ([A-Z_]+)", message)
    return match[1] if match else ""


def _version(metadata: dict[bytes | str, bytes]) -> str:
    """The ETag, or if there is none the time of publishing and the size. Only letters, digits and hyphens are kept."""
    values = {str(name): value.decode("ascii", "replace") for name, value in metadata.items()}
    text = values.get("ETag") or f"{values.get('Last-Modified', '')}-{values.get('Content-Length', '')}"
    return re.sub(r"[^0-9A-Za-z-]", "", text) or "unknown"
