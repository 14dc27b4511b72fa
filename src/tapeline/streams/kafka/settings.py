"""librdkafka's settings for an address."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

from tapeline.config import StreamConfig
from tapeline.errors import ConfigError
from tapeline.secret import Secret

#: A client asks at least this often which partitions exist and which brokers lead them.
_REFRESH_S: Final = 10.0
#: A broker that is back is found within this time.
_RECONNECT_S: Final = 2.0


def settings_of(config: StreamConfig, password: Secret) -> dict[str, Any]:
    """Return librdkafka's settings for an address. Raises ConfigError if the address is invalid or the password is missing."""
    parts = re.fullmatch(r"(?P<scheme>kafkas?)://(?:(?P<user>[^:/@]+)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/@]+)/?", config.url)
    if parts is None:
        raise ConfigError(
            f'stream.url = "{config.shown}" is not a valid address. Write kafka://[user@]host:9092[,host:9092] (kafkas:// for TLS).'
        )
    tls = parts["scheme"] == "kafkas"
    settings: dict[str, Any] = {"bootstrap.servers": parts["hosts"], "security.protocol": "SSL" if tls else "PLAINTEXT"}
    settings["topic.metadata.refresh.interval.ms"] = int(_REFRESH_S * 1000)
    settings["reconnect.backoff.max.ms"] = int(_RECONNECT_S * 1000)
    if config.ca_file:
        settings["ssl.ca.location"] = config.ca_file
    if parts["user"]:
        secret = unquote(parts["password"] or "") or password.reveal()
        if not secret:
            raise ConfigError(
                f"{config.shown} names the user {parts['user']}, but there is no password. Set TAPELINE_STREAM_PASSWORD or password_file."
            )
        settings |= {"sasl.mechanism": config.sasl, "sasl.username": unquote(parts["user"]), "sasl.password": secret}
        settings["security.protocol"] = "SASL_SSL" if tls else "SASL_PLAINTEXT"
    return settings


#: The largest message in bytes. A frame may be 64 MiB, and a batch is closed before a second frame of that size.
MESSAGE_BYTES: Final = 80 * 1024 * 1024
#: The same for normalized topics. A rejected event has its own columns in addition to the bytes of such a message.
OUTPUT_BYTES: Final = MESSAGE_BYTES + 1024 * 1024
