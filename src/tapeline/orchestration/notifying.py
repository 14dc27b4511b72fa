"""Sends messages about alerts to people, by Apprise: e-mail, chats, webhooks and many others."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tapeline.config import Config, NotifyConfig
from tapeline.errors import ConfigError
from tapeline.orchestration.alerts import Message, What
from tapeline.times import text

if TYPE_CHECKING:
    from apprise import Apprise

log = logging.getLogger(__name__)

#: Apprise's name for the colour or the mark of a message.
_TYPES: Final[Mapping[What, str]] = {"raised": "failure", "reminder": "warning", "resolved": "success"}


class Notifier:
    """Sends messages to the receivers of the configuration. The files with their addresses are read at each message."""

    def __init__(self, config: Config) -> None:
        self._blocks: Mapping[str, NotifyConfig] = {some.name: some for some in config.notify}

    def send(self, message: Message) -> str:
        """Send a message. Return an empty text, or why it could not be delivered; the log says it too. No address is shown."""
        title, body = _title(message), _body(message)
        try:
            why = (
                ""
                if self._addresses(message.receiver).notify(title=title, body=body, notify_type=_TYPES[message.what])
                else "one of its addresses did not accept the message"
            )
        except ConfigError as error:
            why = str(error)
        if why:
            log.error(
                "The message %r was not delivered to %s: %s. Tapeline sends it again in a minute.", title, message.receiver, why.rstrip(".")
            )
        return why

    def _addresses(self, receiver: str) -> Apprise:
        if receiver not in self._blocks:
            raise ConfigError(f"There is no [[notify]] block {receiver!r}.")
        path = self._blocks[receiver].urls_file
        try:
            lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"[[notify]] {receiver}: urls_file {path} cannot be read: {error}.") from None
        addresses = [line for line in lines if line and not line.startswith("#")]
        found = _library()()
        for number, address in enumerate(addresses, 1):
            if not found.add(address):
                raise ConfigError(
                    f"[[notify]] {receiver}: address {number} in {path} is not one that Apprise knows. Write it like mailto://..."
                )
        if not addresses:
            raise ConfigError(f"[[notify]] {receiver}: urls_file {path} holds no address. Write one on a line.")
        return found


def _library() -> Callable[[], Apprise]:
    try:
        from apprise import Apprise
    except ModuleNotFoundError as error:
        raise ConfigError(f"[[notify]] needs the package {error.name}. Install it: pip install 'tapeline[notify]'.") from None
    # Its own log lines may show parts of addresses.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    kind: Callable[[], Apprise] = Apprise
    return kind


def _title(message: Message) -> str:
    about = {"raised": "", "reminder": "Still: ", "resolved": "Resolved: "}[message.what]
    return f"{about}{message.alert.name} (Tapeline on {platform.node()})"


def _body(message: Message) -> str:
    alert = message.alert
    if message.what == "resolved":
        return f"It is over since {text(alert.resolved_ns or 0)[:19]} UTC. It began at {text(alert.raised_ns)[:19]} UTC: {alert.text}"
    return f"{alert.text}\nSince {text(alert.raised_ns)[:19]} UTC.\nWhat to do: {alert.runbook}"
