"""Runs that end early, or lose their evidence: what is on disk is whole, and it claims nothing."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Bench, Done

BLOCKS = """
import os

def change(case, seen):
    if case == "bios-channel":
        with open("inside", "w") as told:
            told.write("x")
        os.open("never", os.O_RDONLY)
    return seen
"""


def wait_for_byte(path: Path, seconds: float) -> bool:
    """Whether somebody wrote into the FIFO in time."""
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_verdicts_that_claim_nothing(bench: Bench, number: signal.Signals) -> None:
    bench.rows(BLOCKS)
    for name in ("inside", "never"):
        os.mkfifo(bench.path / name)
    command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *bench.options("test_rows.py")]
    log = bench.path / "log"
    with log.open("wb") as sink:
        process = bench.pytester.popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        assert wait_for_byte(bench.path / "inside", 60)
        (path,) = bench.path.glob("osgates-evidence/*/*/verdicts.json")
        while_running = json.loads(path.read_text())
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    record = json.loads(path.read_text())
    for data in (while_running, record):
        assert data["launch"] == "NOT READY"
        assert {gate["verdict"] for gate in data["gates"].values()} == {"NOT PROVEN"}
        assert set(data["gates"]["boot"]["rows"]) == {"uefi-channel", "uefi-bare"}
    assert json.loads((path.parent / "observations/boot/uefi-bare.json").read_text())["case"] == "uefi-bare"
    assert list(path.parent.glob(".*")) == []
    if number is signal.SIGINT:
        done = Done(process.returncode, log.read_text()).check().check_manifest()
        assert done.status == pytest.ExitCode.INTERRUPTED
        assert done.lines[-1] == "LAUNCH: NOT READY"
        assert json.loads((path.parent / "manifest.json").read_text())["interrupted"] == "KeyboardInterrupt"
    else:
        assert process.returncode == -signal.SIGKILL
        # The manifest that stood while the run went on: it has what was finished, and says that there is more.
        manifest = json.loads((path.parent / "manifest.json").read_text())
        assert manifest["ended"] is False
        assert {"profile.toml", "observations/boot/uefi-bare.json"} <= set(manifest["files"])
        assert "verdicts.json" in manifest["open"]


def test_verdicts_without_their_evidence_are_not_ready(bench: Bench) -> None:
    """All rows pass; then the disk turns out to be unable to take the last file."""
    bench.rows(
        """
@pytest.fixture(autouse=True, scope="session")
def spoil(os_run):
    yield
    (os_run.evidence.root / "manifest.json").unlink()
    (os_run.evidence.root / "manifest.json").mkdir()
"""
    )
    done = bench.run()
    assert done.status == 10
    assert set(done.verdicts.values()) == {"PASS"}
    assert done.lines[-1] == "LAUNCH: NOT READY"
    assert done.lines[-3].startswith("EVIDENCE INCOMPLETE: evidence cannot be written to ")


def test_an_observation_that_cannot_be_stored_is_not_judged(bench: Bench) -> None:
    bench.rows(
        """
@pytest.fixture(autouse=True)
def spoil(os_run, request):
    if request.node.name == "test_kernel":
        (os_run.evidence.root / "observations" / "kconfig.json").mkdir()
"""
    )
    done = bench.run()
    assert done.status == 10
    assert done.verdicts == {"boot": "PASS", "kconfig": "NOT PROVEN"}
    assert "evidence cannot be written to" in done.reasons("kconfig")
    assert done.record["gates"]["kconfig"]["controls"] == []
