"""Websocket frames as bytes, so that one write can send many, and permessage-deflate without context takeover."""

from __future__ import annotations

import zlib
from functools import lru_cache

from tapeline.simulators.events import CLOSE

#: The server's answer to a client that offers compression. No state is kept between messages, in either direction.
DEFLATE_REPLY = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
_TAIL = b"\x00\x00\xff\xff"  # RFC 7692: removed from the end of each message, and put back before inflating


@lru_cache(maxsize=4096)
def header(opcode: int, size: int, compressed: bool = False) -> bytes:
    """The header of a server's (unmasked) final frame with a payload of `size` bytes."""
    first = 0x80 | (0x40 if compressed else 0) | opcode
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")


def frame(payload: bytes, opcode: int) -> bytes:
    """A whole frame."""
    return header(opcode, len(payload)) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame with its code and reason."""
    return frame(code.to_bytes(2, "big") + reason.encode(), CLOSE)


def deflated_frame(payload: bytes, opcode: int) -> bytes:
    """A whole frame, compressed (permessage-deflate)."""
    squeeze = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    body = (squeeze.compress(payload) + squeeze.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
    return header(opcode, len(body), compressed=True) + body


def inflate(payload: bytes, most: int) -> bytes:
    """The message in a compressed payload. ValueError if it is broken or longer than `most` bytes."""
    expand = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        message = expand.decompress(payload + _TAIL, most + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed message cannot be read: {error}") from None
    if len(message) > most:
        raise ValueError(f"a compressed message holds more than {most} bytes")
    return message
