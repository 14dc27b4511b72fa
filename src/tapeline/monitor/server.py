"""Serves what the Tapeline processes of a machine say of themselves over HTTP: /metrics, /live and /ready.

Whichever process has the address answers for all that share its data folder and its machine (or container). When that process ends, another
takes the address over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from tapeline.errors import Busy, DiskProblem
from tapeline.local.locks import own
from tapeline.local.machine import process_space
from tapeline.monitor.health import alive
from tapeline.monitor.metrics import exposed, series_of
from tapeline.records import NS_PER_S
from tapeline.telemetry.status import read_status

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

#: A client that sends or takes nothing for so long (s) is cut off.
_PATIENCE_S: Final = 5.0
#: How long it may take until a stop is noticed (s).
_LOOK_S: Final = 0.2
#: How often a process tries to get the address that another one has (s).
_AGAIN_S: Final = 5.0
#: A stage reports once a second, and less often while it commits. After so long (ns) without a report it is not ready.
_SILENT_NS: Final = 30 * NS_PER_S
#: After so long (ns) without a report a process hangs.
_HANGS_NS: Final = 300 * NS_PER_S
_PLAIN: Final = "text/plain; charset=utf-8"


class MonitorServer:
    """Answers on a thread of its own from `start` to `stop`. It has one client at a time."""

    def __init__(self, listen: str, root: Path, stages: Set[str], clock: Callable[[], int]) -> None:
        """`listen`: host:port. `root`: the data folder. `stages`: those that must report for this process to be ready. `clock`: ns, UTC."""
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)
        self._root, self._stages, self._clock = root, stages, clock
        #: Held by the process that answers for this data folder on this machine.
        self._lock = root / "locks" / f"monitor-{hashlib.sha256(process_space().encode()).hexdigest()[:16]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)

    def start(self) -> None:
        """Begin to answer. If another process has the address, wait until it is free."""
        self._thread.start()

    def stop(self) -> None:
        """Give the address up."""
        self._stop.set()
        self._thread.join()

    def _serve(self) -> None:
        warned = False
        while not self._stop.is_set():
            with ExitStack() as held:
                try:
                    held.enter_context(own(self._lock, "the monitor"))
                    server = held.enter_context(make_server(self._host, self._port, self._answer, handler_class=_Handler))
                except Busy:
                    pass  # another process answers for this one, too
                except (OSError, DiskProblem) as error:
                    if not warned:
                        log.warning(
                            '%s:%d cannot be used for /metrics: %s. Data flows all the same. Set another [monitor] listen, or "" for none.',
                            self._host,
                            self._port,
                            error,
                        )
                        warned = True
                else:
                    server.timeout = _LOOK_S
                    while not self._stop.is_set():
                        server.handle_request()
            self._stop.wait(_AGAIN_S)

    def _answer(self, request: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status, media_type, body = "200 OK", _PLAIN, b""
        if request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"Only GET and HEAD are possible here.\n"
        elif request["PATH_INFO"] == "/metrics":
            body, media_type = exposed(series_of(self._statuses(), self._clock()), request.get("HTTP_ACCEPT", ""))
        elif request["PATH_INFO"] in ("/live", "/ready"):
            silent = self._silent(_HANGS_NS if request["PATH_INFO"] == "/live" else _SILENT_NS)
            status = "503 Service Unavailable" if silent else "200 OK"
            media_type, body = "application/json", json.dumps({"silent": silent}).encode() + b"\n"
        else:
            status, body = "404 Not Found", b"There is /metrics, /live and /ready.\n"
        start(status, [("Content-Type", media_type), ("Content-Length", str(len(body)))])
        return [] if request["REQUEST_METHOD"] == "HEAD" else [body]

    def _statuses(self) -> dict[str, dict[str, Any]]:
        """The statuses of this machine's processes: others that share the data folder answer for themselves."""
        return {name: status for name, status in read_status(self._root).items() if status.get("space") == process_space()}

    def _silent(self, after_ns: int) -> list[str]:
        """The stages that do not run, or have not reported for so long."""
        statuses, now_ns = self._statuses(), self._clock()
        return sorted(name for name in self._stages if not _reports(statuses.get(name), now_ns, after_ns))


def _reports(status: Mapping[str, Any] | None, now_ns: int, within_ns: int) -> bool:
    return status is not None and alive(status, now_ns) and now_ns - int(status["updated_ns"]) < within_ns


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 its name in the library
        """Write no line for each scrape."""
        log.debug(format, *arguments)
