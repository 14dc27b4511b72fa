"""The address at which the server listens."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Final

from tapeline.errors import Busy

#: How many connections may wait to be accepted.
_WAITING: Final = 2_048
#: The most bytes of a connection that the operating system keeps before it has sent them. It would keep megabytes for each slow client, and
#: what it keeps grows old.
_UNSENT: Final = 128_000


def bound(listen: str) -> socket.socket:
    """Return a socket that listens at host:port. Raises Busy if that is not possible."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        place = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_WAITING)
    except OSError as error:
        text = f"{listen} cannot be used for the dashboard: {error.strerror}."
        raise Busy(f"{text} Stop what uses it, or set another [dashboard] listen.") from None
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux and macOS
        place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)  # each connection inherits it
    return place


def free(preferred: str) -> str:
    """Return an address that is free now: the preferred one, or another port of its host."""
    for listen in (preferred, f"{preferred.rpartition(':')[0]}:0"):
        try:
            with closing(bound(listen)) as place:
                return f"{place.getsockname()[0]}:{place.getsockname()[1]}"
        except Busy:
            continue
    return preferred
