"""Runs a slow call on its own thread, so that the caller can check for the result now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Answer = TypeVar("_Answer")


def concurrently(question: Callable[[], _Answer], name: str) -> Future[_Answer]:
    """Call `question` on a new thread. Returns a future that gets its result or its exception.

    The thread is a daemon, so the process can exit without waiting for it."""
    answer: Future[_Answer] = Future()

    def ask() -> None:
        answer.set_running_or_notify_cancel()  # from now on the future cannot be cancelled
        try:
            result = question()
        except BaseException as error:  # noqa: BLE001 the caller must get every error
            answer.set_exception(error)
        else:
            answer.set_result(result)

    threading.Thread(target=ask, name=name, daemon=True).start()
    return answer
