"""The lease book on Redis: each lease is a key that expires."""

from __future__ import annotations

from tapeline.streams.redis.keys import literal
from tapeline.streams.redis.scripts import script
from tapeline.streams.redis.server import RedisServer


class RedisLeases:
    """The lease book on Redis: each lease is a key that expires."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._take = server.client.register_script(script("take"))
        self._drop = server.client.register_script(script("drop"))

    def take(self, name: str, token: str, seconds: float) -> bool:
        with self._server.errors():
            return bool(self._take(keys=[self._server.keys.lease(name)], args=[token, int(seconds * 1000)]))

    def drop(self, name: str, token: str) -> None:
        with self._server.errors():
            self._drop(keys=[self._server.keys.lease(name)], args=[token])

    def taken(self, prefix: str) -> dict[str, str]:
        begin = self._server.keys.lease("")
        with self._server.errors():
            keys = list(self._server.client.scan_iter(match=f"{literal(begin + prefix)}*", count=1000))
            values = self._server.client.mget(keys) if keys else []
        return {key.decode().removeprefix(begin): value.decode() for key, value in zip(keys, values, strict=True) if value is not None}
