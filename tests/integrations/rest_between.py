"""A server between Tapeline and a simulator's REST: it passes on what is asked, or fails as a test tells it to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import urllib3

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Between:
    """`mode`: "" passes on, "500" and "429" refuse, "hang" does not answer, "slow" takes a second."""

    target: str
    mode: str = ""
    #: Changes the body of an answer.
    change: Callable[[bytes], bytes] = lambda body: body
    #: When each request of the history came (s, any epoch).
    asked: list[float] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        between, pool, over = self, urllib3.PoolManager(), threading.Event()
        self._over = over

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                history = "rades" in self.path
                if history:
                    between.asked.append(time.monotonic())
                mode = between.mode if history else ""
                if mode in ("500", "429"):
                    self.send_response(int(mode))
                    self.send_header("Retry-After", "1")
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")
                    return
                while between.mode == "hang" and mode and not over.wait(0.1):
                    pass
                if mode == "slow":
                    over.wait(1.0)
                answer = pool.request("GET", between.target + self.path, headers={"X-MBX-APIKEY": ""})
                body = between.change(answer.data) if history else answer.data
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is no error here."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
