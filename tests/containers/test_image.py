"""The image, built for real: what is in it, as whom it runs, and that the demo proves itself in it without a network."""

from __future__ import annotations

import json
import subprocess
import tomllib
from typing import TYPE_CHECKING, Final

import pytest
from stacks import COMPOSE, ROOT, stand_in

from modules import module_at
from proving import proof

if TYPE_CHECKING:
    from services.docker import Engine

TAPELINE: Final = "tapeline:0.1.0"
#: Another user than the image's own, a file system that cannot be written, and no network but loopback.
CLOSED: Final = ("--rm", "--init", "--read-only", "--network", "none", "--user", "4711:4711", "--cap-drop", "ALL", "--tmpfs", "/tmp")

pytestmark = [proof("containers", quick=False), pytest.mark.timeout(3_600), pytest.mark.xdist_group("containers")]


def again(engine: Engine, tag: str, *options: str) -> None:
    """Build Tapeline's image once more, under another name only."""
    build = module_at(COMPOSE / "stack.py").build_command("tapeline", engine.environment | stand_in(engine, "rust"))
    assert build.count(TAPELINE) == 1
    command = [tag if word == TAPELINE else word for word in build[1:-1]]
    engine.run(*command, *options, str(ROOT), within_s=1_800)


def test_the_image_says_what_it_is_and_runs_as_nobody_in_particular(image: Engine) -> None:
    (found,) = json.loads(image.run("image", "inspect", TAPELINE))
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["tapeline"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["revision"], labels["licenses"]) == ("Tapeline", "0.1.0", head, "Apache-2.0")


def test_the_list_of_its_parts_is_what_is_installed_and_what_the_lock_names(image: Engine) -> None:
    listed = json.loads(image.run("run", "--rm", "--network", "none", "--entrypoint", "cat", TAPELINE, "/opt/tapeline/sbom.json"))
    assert listed["bomFormat"] == "CycloneDX"
    named = {(one["name"], one["version"]) for one in listed["components"] if one["type"] == "library"}
    program = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    installed = json.loads(image.run("run", "--rm", "--network", "none", "--entrypoint", "python", TAPELINE, "-c", program))
    ours = {("tapeline", "0.1.0"), ("tapeline-native", "0.1.0")}
    there = {(name.lower().replace("_", "-").replace(".", "-"), version) for name, version in installed} - ours
    assert there <= named, "nothing is installed that is not listed"
    elsewhere = {(one["name"], one["version"]) for one in listed["components"] if "marker" in json.dumps(one.get("properties", []))}
    assert named - there <= elsewhere, "what is listed beyond that is for other systems and other Pythons, and says so"


def test_it_decodes_in_the_native_core_and_without_one_in_python(image: Engine) -> None:
    again(image, "tapeline-python:0.1.0", "--build-arg", "NATIVE=none")
    program = "from tapeline.providers.decoding import native; print(native.in_use())"
    for name, used in ((TAPELINE, "native core 0.1.0"), ("tapeline-python:0.1.0", "Python")):
        assert image.run("run", "--rm", "--network", "none", "--entrypoint", "python", name, "-c", program) == used
    # Without a network, the check fails, and says of each part how it is.
    said = image.run("run", "--rm", "--network", "none", "--entrypoint", "sh", TAPELINE, "-c", "tapeline check; test $? = 69")
    assert "decoder: native core 0.1.0" in said


def test_the_native_core_lists_its_crates_and_has_no_path_of_where_it_was_built(image: Engine) -> None:
    program = (
        "import importlib.metadata as m, json, tapeline_native as t\n"
        "(listed,) = [one for one in m.files('tapeline-native') if 'sboms' in one.parts]\n"
        "(core,) = [one for one in m.files('tapeline-native') if one.suffix == '.so']\n"
        "places = [name for name in ('/cargo', '/build', '/root', '/home') if name.encode() in core.read_binary()]\n"
        "print(json.dumps([[one['name'] for one in json.loads(listed.read_text())['components']], places]))\n"
    )
    crates, places = json.loads(image.run("run", "--rm", "--network", "none", "--entrypoint", "python", TAPELINE, "-c", program))
    locked = {one["name"] for one in tomllib.loads((ROOT / "native" / "Cargo.lock").read_text())["package"]}
    assert set(crates) == locked - {"tapeline-native"}
    assert places == []


def test_it_has_the_page_and_nothing_that_builds(image: Engine) -> None:
    program = (
        "import shutil, tapeline.web.site as s\n"
        "print((s.ASSETS / 'index.html').exists(), *map(shutil.which, ['uv', 'npm', 'node', 'cc', 'cargo', 'maturin']))"
    )
    said = image.run("run", "--rm", "--network", "none", "--entrypoint", "python", TAPELINE, "-c", program)
    assert said == "True" + " None" * 6


def test_the_demo_proves_itself_as_another_user_on_a_read_only_system_without_a_network(image: Engine) -> None:
    said = image.run("run", *CLOSED, "--tmpfs", "/data:uid=4711,gid=4711,size=1g", TAPELINE, "demo", "--seconds", "10", "--rate", "500")
    assert "events sent is in the lake exactly once" in said, said


def test_it_can_be_built_again_from_the_same_sources_with_the_same_contents(image: Engine) -> None:
    program = (
        "import hashlib, os, sys\n"
        "for folder, _, names in sorted(os.walk('/opt/tapeline')):\n"
        "    for name in sorted(names):\n"
        "        path = os.path.join(folder, name)\n"
        "        some = os.lstat(path)\n"
        "        data = os.readlink(path).encode() if os.path.islink(path) else open(path, 'rb').read()\n"
        "        print(path, int(some.st_mtime), oct(some.st_mode), hashlib.sha256(data).hexdigest())\n"
    )
    again(image, "tapeline-again:0.1.0", "--no-cache")
    first, second = (
        image.run("run", "--rm", "--network", "none", "--entrypoint", "python", name, "-c", program).splitlines()
        for name in (TAPELINE, "tapeline-again:0.1.0")
    )
    ids = {image.run("image", "inspect", "--format", "{{.Id}}", name) for name in (TAPELINE, "tapeline-again:0.1.0")}
    assert len(ids) == 2, "they are two images"
    assert sorted(set(first) ^ set(second)) == []
