"""A question that takes long, asked on a thread of its own: who asks looks now and again whether there is an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Answer = TypeVar("_Answer")


def beside(question: Callable[[], _Answer], name: str) -> Future[_Answer]:
    """The answer, or what was raised instead of one. The thread is a daemon: an end of the process does not wait for it."""
    answer: Future[_Answer] = Future()

    def ask() -> None:
        answer.set_running_or_notify_cancel()  # who does not wait any more cannot take it back
        try:
            found = question()
        except BaseException as error:  # noqa: BLE001 whatever it is: who asked has to hear it
            answer.set_exception(error)
        else:
            answer.set_result(found)

    threading.Thread(target=ask, name=name, daemon=True).start()
    return answer
