"""The gate `reproducible` as users run it: a second build, a build command, or nothing."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["bios"]
[gate.reproducible]
deadline_s = 60
"""


@pytest.fixture
def rebuild(bench: Bench) -> Path:
    """A copy of the image, as a second build of the same bytes."""
    bench.profile(PROFILE)
    other = bench.path / "rebuild.iso"
    shutil.copyfile(bench.iso, other)
    return other


def test_a_second_build_of_the_same_bytes_passes(bench: Bench, rebuild: Path) -> None:
    done = bench.run("--iso-rebuild", rebuild, tests=()).check_manifest()
    assert done.status == 0
    assert done.verdicts == {"reproducible": "PASS"}
    controls = done.record["gates"]["reproducible"]["controls"]
    assert len(controls) > 10
    assert all(control["caught"] for control in controls)


def test_a_second_build_that_differs_fails(bench: Bench, rebuild: Path) -> None:
    raw = bytearray(rebuild.read_bytes())
    raw[33581] ^= 1
    rebuild.write_bytes(raw)
    done = bench.run("--iso-rebuild", rebuild, tests=()).check_manifest()
    assert done.status == 1
    assert done.verdicts == {"reproducible": "FAIL"}
    assert "primary volume descriptor" in done.output
    assert (done.root / "reproducible" / "iso-rebuild.html").exists()


@pytest.mark.parametrize("how", ["nothing", "link", "workers"])
def test_no_second_build_proves_nothing(bench: Bench, rebuild: Path, how: str) -> None:
    rebuild.unlink()
    rebuild.symlink_to(bench.iso)
    options: dict[str, list[str | Path]] = {
        "nothing": [],
        "link": ["--iso-rebuild", rebuild],
        "workers": ["--iso-rebuild", rebuild, "-n", "1", "--dist", "loadgroup"],
    }
    done = bench.run(*options[how], tests=())
    assert done.status == 10
    assert done.verdicts == {"reproducible": "NOT PROVEN"}
    assert ("nothing-to-compare" if how == "nothing" else "same-file") in done.reasons("reproducible")


def test_two_builds_by_a_command(bench: Bench, rebuild: Path) -> None:
    command = f"sh -c {shlex.quote(f'echo copying; cp {shlex.quote(str(rebuild))} new.iso')}"
    sums = bench.path / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  {bench.iso.name}\n")
    done = bench.run(f"--iso-build={command}", "--iso-build-output=*.iso", "--iso-sums", sums, tests=())
    assert done.status == 1
    assert {finding["rule"] for finding in done.record["gates"]["reproducible"]["findings"]} == {"not-published"}
    assert (done.root / "builds" / "build-2.log").read_text() == "copying\n"


def test_half_a_request_is_refused_by_the_gate(bench: Bench, rebuild: Path) -> None:
    done = bench.run("--iso-build=make", tests=())
    assert done.status == 10
    assert "--iso-build-output is missing" in done.reasons("reproducible")
