"""From Prefect's automations to Tapeline's alerts: an address on loopback, with a secret in its path, that calls Tapeline's command."""

from __future__ import annotations

import hmac
import json
import logging
import queue
import secrets
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final

from tapeline_prefect.command import CommandFailed, Tapeline

log = logging.getLogger(__name__)

_LARGEST_BODY: Final = 65_536
_MOST_WAITING: Final = 256
_TRIES: Final = 5
_FIRST_WAIT_S: Final = 2.0


def name_of(job: str) -> str:
    """The name of the alert of a job."""
    return f"prefect-{job}-late"


class Alerts:
    """Listens while it is open. An automation posts {"job": ..., "late": true or false, "text": ...} to `url`."""

    def __init__(self, tapeline: Tapeline) -> None:
        self._tapeline, self._jobs = tapeline, frozenset[str]()
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._secret = secrets.token_urlsafe(32)
        #: The jobs whose alert may be raised. An earlier process may have raised any of them.
        self._perhaps_late: set[str] = set()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """The address, with its secret. Only while it is open."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._secret}"

    def listen_for(self, jobs: Collection[str]) -> None:
        """Accept what is said of these jobs, and of no others."""
        self._perhaps_late |= set(jobs) - self._jobs
        self._jobs = frozenset(jobs)

    def __enter__(self) -> Alerts:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="alerts: listen", daemon=True),
            threading.Thread(target=self._pass_on, name="alerts: pass on", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._ended.set()
        self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        alerts, path, waiting = self, f"/{self._secret}", self._waiting

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not hmac.compare_digest(self.path.encode(), path.encode()):
                    self.send_error(404)
                elif not length.isdigit() or int(length) > _LARGEST_BODY:
                    self.send_error(413)
                elif (said := _read(self.rfile.read(int(length)))) is None or said["job"] not in alerts._jobs:
                    self.send_error(400)
                else:
                    try:
                        waiting.put_nowait(said)
                        self.send_response(204)
                        self.end_headers()
                    except queue.Full:
                        self.send_error(503)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the name of the library
                """The path is a secret: nothing of a request is logged."""

        return Handler

    def _pass_on(self) -> None:
        while (said := self._waiting.get()) is not None:
            job = str(said["job"])
            if not said["late"] and job not in self._perhaps_late:
                continue
            for number in range(_TRIES):
                try:
                    if said["late"]:
                        self._perhaps_late.add(job)
                        self._tapeline.raise_alert(name_of(job), str(said["text"]))
                    else:
                        self._tapeline.resolve_alert(name_of(job))
                        self._perhaps_late.discard(job)
                    break
                except (CommandFailed, OSError) as error:
                    log.warning("The alert of %s was not passed on: %s", job, error)
                    if isinstance(error, CommandFailed) and not error.may_pass:
                        break
                    if self._ended.wait(_FIRST_WAIT_S * 2.0**number):
                        break


def _read(body: bytes) -> dict[str, Any] | None:
    """What an automation posts, or None if it is something else."""
    try:
        said = json.loads(body)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    good = isinstance(said.get("job"), str) and isinstance(said.get("late"), bool) and isinstance(said.get("text"), str)
    return said if good else None
