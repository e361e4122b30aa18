"""The pinned programs that judge: only the pinned bytes pass for them, and nothing here needs a network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pytest_osgates import tools
from pytest_osgates.data import load
from pytest_osgates.tools import Pin
from pytest_osgates.vm.errors import HostError, UsageError
from pytest_osgates.vm.process import run

NAME = "kernel-hardening-checker"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small package with a program and the module that it imports."""
    base = tmp_path_factory.mktemp("package")
    for name, text in {
        "DEBIAN/control": f"Package: {NAME}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n",
        "usr/bin/tool": "import sys, tool_module\nprint(tool_module.WORD, *sys.argv[1:])\n",
        "usr/lib/tool_module.py": "WORD = 'pinned'\n",
    }.items():
        path = base / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(base / "tree"), str(base / "t.deb")], timeout=30)
    return base / "t.deb"


@pytest.fixture
def pin(package: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """The package, pinned."""
    made = Pin(NAME, "1", ("trixie",), hashlib.sha256(package.read_bytes()).hexdigest(), "usr/bin/tool", "usr/lib")
    monkeypatch.setattr(tools, "pins", lambda: {NAME: made})
    return made


class NoNetwork:
    """An archive that cannot be reached."""

    def __init__(self, *arguments: object) -> None:
        raise HostError("no route to the archive")


def test_the_pins_are_complete() -> None:
    assert NAME in tools.pins()
    for name, pin in tools.pins().items():
        assert pin.name == name
        assert len(bytes.fromhex(pin.sha256)) == 32
        assert pin.version
        assert pin.suites
        assert not Path(pin.entry).is_absolute()
        assert load("tools")[name]["licence"]


def test_a_given_package_is_unpacked_and_runs_apart_from_the_users_environment(
    pin: Pin, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools.find(NAME, {NAME: str(package)})
    assert (tool.version, tool.sha256, tool.source) == ("1", pin.sha256, f"--iso-tool {package}")
    (tmp_path / "tool_module.py").write_text("WORD = 'the user's'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run([*tool.argv, "-m", "json"], timeout=30, cwd=tmp_path).text == "pinned -m json\n"


def test_a_given_package_that_is_another_one_is_refused(pin: Pin, tmp_path: Path) -> None:
    other = tmp_path / "other.deb"
    other.write_bytes(b"!<arch>\n")
    with pytest.raises(UsageError, match="not the pinned package") as caught:
        tools.find(NAME, {NAME: str(other)})
    assert pin.sha256 in str(caught.value)


def test_a_given_program_is_named_as_given_with_its_digest(pin: Pin, tmp_path: Path) -> None:
    program = tmp_path / "checker"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match="not executable"):
        tools.find(NAME, {NAME: str(program)})
    program.chmod(0o755)
    tool = tools.find(NAME, {NAME: str(program)})
    assert (tool.version, tool.argv) == ("as given", (str(program),))
    assert tool.sha256 == hashlib.sha256(b"#!/bin/sh\n").hexdigest()


def cached(private_cache: Path, pin: Pin, data: bytes) -> None:
    path = private_cache / "osgates" / "debs" / f"{pin.sha256}.deb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_the_cache_is_used_without_a_network(
    pin: Pin, package: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "PrivateApt", NoNetwork)
    cached(private_cache, pin, package.read_bytes())
    tool = tools.find(NAME, {})
    assert (tool.source, tool.sha256) == ("cache", pin.sha256)
    assert run([*tool.argv], timeout=30).text == "pinned\n"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "absent"])
def test_a_damaged_cache_is_not_used(
    damage: str, pin: Pin, package: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = package.read_bytes()
    if damage != "absent":
        cached(
            private_cache,
            pin,
            {"empty": b"", "cut": data[:-1], "flipped": data[:-1] + bytes([data[-1] ^ 1])}[damage],
        )
    with pytest.raises(HostError, match="not in the cache") as caught:
        tools.find(NAME, {}, fetch=False)
    assert f"--iso-tool {NAME}=FILE.deb" in str(caught.value)
    monkeypatch.setattr(tools, "PrivateApt", NoNetwork)
    with pytest.raises(HostError, match="cannot be had: no route to the archive") as caught:
        tools.find(NAME, {})
    assert pin.sha256 in str(caught.value)
    assert not list(private_cache.rglob("usr"))


def test_it_is_unpacked_anew_where_nobody_else_can_have_changed_it(pin: Pin, package: Path) -> None:
    first = tools.find(NAME, {NAME: str(package)})
    Path(first.argv[-1]).write_text("raise SystemExit(9)\n")
    second = tools.find(NAME, {NAME: str(package)})
    assert run([*second.argv], timeout=30).text == "pinned\n"
    assert Path(second.argv[-1]).parents[3].stat().st_mode & 0o077 == 0


def test_a_tool_that_nobody_uses_is_refused(package: Path) -> None:
    with pytest.raises(UsageError, match="no such tool"):
        tools.check_names({"lynx": str(package)})
