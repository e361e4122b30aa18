"""``osgates networked``: the list, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from elf_builders import elf

from pytest_osgates.checks.apparmor_model import StaticScan
from pytest_osgates.cli import main
from pytest_osgates.vm.process import run


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("networked")
    for path, data in (
        ("bin/nc", elf(imports=("socket",))),
        ("bin/fetch", b"#!/bin/sh\ncurl x\n"),
        ("bin/broken", elf()[:-40]),
        ("bin/reaches", elf(("libselinux.so.1",))),
    ):
        file = top / "root" / "usr" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755)
    library = top / "root" / "usr" / "lib" / "libselinux.so.1"
    library.parent.mkdir()
    library.write_bytes(elf(imports=("connect",), soname="libselinux.so.1", interpreter=""))
    live = top / "iso" / "live"
    live.mkdir(parents=True)
    squash = ["mksquashfs", str(top / "root"), str(live / "filesystem.squashfs"), "-quiet", "-no-progress"]
    run([*squash, "-processors", "1"], timeout=60)
    run(["xorriso", "-as", "mkisofs", "-quiet", "-o", str(top / "image.iso"), str(top / "iso")], timeout=60)
    return top / "image.iso"


def test_the_list(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networked", "--all", str(image)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("B: must be confined, or documented")
    assert "  /usr/bin/fetch  [no package]  commands curl" in lines
    assert any(line.startswith("  /usr/bin/nc  [no package]  imports socket; ") for line in lines)
    assert any(line.startswith("  /usr/bin/reaches  [no package]  reaches ") for line in lines)
    assert any(line.startswith("unreadable: /usr/bin/broken: ") for line in lines)
    assert lines[-1].endswith("0 in tier A, 2 in tier B, 1 in tier C")


def test_as_json(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networked", "--json", str(image)]) == 2
    seen = StaticScan.model_validate(json.loads(capsys.readouterr().out))
    assert {entry.path for entry in seen.entries} == {"/usr/bin/nc", "/usr/bin/fetch", "/usr/bin/reaches"}


def test_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networked", str(tmp_path / "none.iso")]) == 4
    assert "check the path" in capsys.readouterr().err
