"""The messages of proto/market_data.proto, as protobuf's own library makes and reads them: the class that protoc writes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol

from bench.machine import REPOSITORY


class Message(Protocol):
    """One message. Its other fields are attributes too."""

    received_ns: int

    def HasField(self, name: str) -> bool:  # noqa: N802 protobuf's name
        """Whether a field that may be absent is there."""

    def SerializeToString(self) -> bytes:  # noqa: N802 protobuf's name
        """The message on the wire."""


class MessageClass(Protocol):
    """The class of the messages."""

    def __call__(self, **fields: object) -> Message:
        """A message of these fields. A field that is None is absent."""

    def FromString(self, message: bytes) -> Message:  # noqa: N802 protobuf's name
        """Parse a message."""


@cache
def message_class() -> MessageClass:
    """Let protoc write the class, and load it."""
    with tempfile.TemporaryDirectory() as folder:
        proto = REPOSITORY / "proto"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={folder}", str(proto / "market_data.proto")]
        subprocess.run(command, check=True)
        loaded: MessageClass = _module(Path(folder) / "market_data_pb2.py").MarketData
    return loaded


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
