"""The example engines (examples/engine), built as docs/engine.md says, in a copy under .cache, so that the tree stays as it is."""

from __future__ import annotations

import fcntl
import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from services.packages import apt_install
from services.process import Missing

ROOT: Final = Path(__file__).resolve().parent.parent
_COPY: Final = ROOT / ".cache" / "engines"
#: What a build leaves in the folder of an engine.
_BUILT: Final = shutil.ignore_patterns("target", "build", "tapelinev1", "engine")


class _Engine(NamedTuple):
    """What an engine needs, and the commands that docs/engine.md shows, to be given in its folder."""

    build: tuple[str, ...]
    run: str
    #: Programs that must be there, and what to install where they are not.
    needs: dict[str, str]
    #: Programs, and files such as headers, and the Debian packages that bring them.
    packages: dict[str, str]


_PROTOC: Final = {"/usr/bin/protoc": "protobuf-compiler"}
_ENGINES: Final = {
    "go": _Engine(
        build=("go generate", "go build"),
        run="./engine",
        needs={"go": "Go 1.26 or later"},
        packages=_PROTOC,
    ),
    "cpp": _Engine(
        build=("cmake -B build", "cmake --build build"),
        run="build/engine",
        needs={},
        packages={
            **_PROTOC,
            "/usr/bin/cmake": "cmake",
            "/usr/bin/g++": "g++",
            "/usr/bin/pkg-config": "pkg-config",
            "/usr/include/google/protobuf/message.h": "libprotobuf-dev",
            "/usr/include/librdkafka/rdkafkacpp.h": "librdkafka-dev",
        },
    ),
    "java": _Engine(
        build=("mvn -q package",),
        run="java -jar target/engine.jar",
        needs={},
        packages={"/usr/bin/javac": "openjdk-17-jdk-headless", "/usr/bin/mvn": "maven"},
    ),
    "rust": _Engine(
        build=("cargo build --release",),
        run="target/release/engine",
        needs={"cargo": "Rust 1.85 or later, with cargo"},
        packages={**_PROTOC, "/usr/bin/gcc": "gcc", "/usr/bin/make": "make"},
    ),
}
LANGUAGES: Final = tuple(_ENGINES)


def commands(language: str) -> list[str]:
    """What docs/engine.md says: the commands that build an engine and run it."""
    engine = _ENGINES[language]
    return [*engine.build, engine.run]


def build(language: str) -> list[str]:
    """Build an engine, unless it is built; the command that runs it. Raises Missing where a tool cannot be had."""
    engine, folder = _ENGINES[language], _folder(language)
    with _alone(language):
        _copy(language)
        stamp = folder.with_name(f"{language}.built")
        digest = _digest(language)
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            _need(language, engine)
            for command in engine.build:
                run_in(language, command)
            stamp.write_text(digest)
    program, *arguments = shlex.split(engine.run)
    return [str(folder / program) if "/" in program else program, *(_absolute(folder, argument) for argument in arguments)]


def run_in(language: str, command: str) -> str:
    """What a command prints in the copy of an engine's folder. Raises RuntimeError, with its last lines, where it fails."""
    done = subprocess.run(
        shlex.split(command), cwd=_folder(language), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(f"{command!r} ended with status {done.returncode} in {_folder(language)}:\n{last}")
    return done.stdout


def _absolute(folder: Path, argument: str) -> str:
    return str(folder / argument) if "/" in argument else argument


def _folder(language: str) -> Path:
    """As deep as the original, so that the .proto is where the build looks for it."""
    return _COPY / "examples" / "engine" / language


def _copy(language: str) -> None:
    """With the times of the files: a build makes anew what has changed."""
    shutil.copytree(ROOT / "proto", _COPY / "proto", dirs_exist_ok=True)
    shutil.copytree(ROOT / "examples" / "engine" / language, _folder(language), dirs_exist_ok=True, ignore=_BUILT)


def _digest(language: str) -> str:
    """Of everything that an engine is built from, and how."""
    sources = [*(ROOT / "proto").rglob("*"), *_sources(ROOT / "examples" / "engine" / language)]
    digest = hashlib.sha256(repr(_ENGINES[language].build).encode())
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    names = [path.name for path in folder.iterdir()]
    for name in sorted({*names} - _BUILT(str(folder), names)):
        yield from [folder / name, *(folder / name).rglob("*")]


def _need(language: str, engine: _Engine) -> None:
    for program, what in engine.needs.items():
        if shutil.which(program) is None:
            raise Missing(f"the engine in {language} needs {what}: install it so that {program!r} is on the path")
    missing = [package for file, package in engine.packages.items() if not _there(Path(file))]
    if missing:
        apt_install(*missing)


def _there(file: Path) -> bool:
    """A program may be anywhere on the path."""
    return file.exists() or (file.parent.name == "bin" and shutil.which(file.name) is not None)


@contextmanager
def _alone(language: str) -> Iterator[None]:
    """While another process builds this engine, wait for it."""
    _COPY.mkdir(parents=True, exist_ok=True)
    with (_COPY / f"{language}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
