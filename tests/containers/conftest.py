"""A Docker engine with Tapeline's image, and stacks in it that are removed at the end of a test."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from services import docker
from services.docker import Engine
from stacks import Stack, build, stand_in

from brokers import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine, in which nothing else runs."""
    need(docker)
    folder = Path(tempfile.mkdtemp(prefix="tapeline-docker-"))  # the path of a socket must be short
    try:
        with Engine(folder) as started:
            started.clear()
            started.import_base()
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: Engine) -> Engine:
    """The engine, with the image tapeline of this clone."""
    build(engine, "tapeline", **stand_in(engine, "rust"))
    return engine


@pytest.fixture
def stack(image: Engine, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """`stack("redis", {"DASHBOARD_PORT": "8765"})`: a stack that is started. It is removed at the end."""
    made: list[Stack] = []

    def start(profile: str, variables: Mapping[str, str]) -> Stack:
        made.append(Stack(image, profile, tmp_path, variables))
        made[-1].up()
        return made[-1]

    yield start
    for one in made:
        one.down()
