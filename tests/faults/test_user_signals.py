"""The user ends a run, or something ends it for them: at ten points, alone and with two workers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_osgates.vm import workdir
from tests.e2e.conftest import Gates, Outcome, until
from tests.faults.points import POINTS, name_of, wait_for_point
from tests.faults.quick_guest import write_profile
from tests.faults.table import Fault, check, check_manifest, proves
from tests.faults.table import rows as table_rows

pytestmark = pytest.mark.boots

SIGNALS = {
    "ctrl-c": (signal.SIGINT,),
    "ctrl-c-twice": (signal.SIGINT, signal.SIGINT),
    "sigterm": (signal.SIGTERM,),
    "sighup": (signal.SIGHUP,),
    "sigkill": (signal.SIGKILL,),
}
# Where it is done in the quick tier.
QUICK = {
    "ctrl-c": "kernel",
    "ctrl-c-twice": "asking",
    "sigterm": "loading",
    "sighup": "channel",
    "sigkill": "watching",
}
SELECTION = ("-m", "boot or asks", "-k", "channel or asks")
# Makes its standard input the controlling terminal of a session of its own, as that of a shell is (tty_ioctl(4)).
LEADER = """
import fcntl, os, subprocess, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(subprocess.call(sys.argv[1:]))
"""
# From the last signal to the end of the run.
ENDS_SECONDS = 20.0


@proves(*SIGNALS)
def test_a_signal(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    send(fault, QUICK[fault.name], gates, quick_iso)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_at_any_time(name: str, point: str, gates: Gates, quick_iso: Path) -> None:
    """The same at all of the points."""
    send(table_rows()[name], point, gates, quick_iso)


def send(fault: Fault, point: str, gates: Gates, quick_iso: Path) -> None:
    """Start a run, wait until it is at `point`, send the signals, and look what becomes of it."""
    profile = write_profile(gates.directory)
    process = gates.start("--iso", quick_iso, "--iso-distro", profile, *SELECTION)
    seen = wait_for_point(gates, process, point)
    for number in SIGNALS[fault.name]:
        process.send_signal(number)
    until(lambda: process.poll() is not None, ENDS_SECONDS, "the end of the run")
    outcome = gates.finish(process)
    nothing_left(gates, process)
    verdicts = json.loads((seen.root / "verdicts.json").read_text())
    assert verdicts["launch"] == "NOT READY"
    if fault.name == "sigkill":
        assert outcome.status == fault.status
        assert {gate["verdict"] for gate in verdicts["gates"].values()} == {"NOT PROVEN"}
        manifest = json.loads((seen.root / "manifest.json").read_text())
        assert manifest["ended"] is False
        return
    check(fault, outcome, "asks")
    said = json.loads((seen.root / "manifest.json").read_text())["interrupted"]
    assert said == {"sigterm": "SIGTERM", "sighup": "SIGHUP"}.get(fault.name, "KeyboardInterrupt")


def nothing_left(gates: Gates, process: subprocess.Popen[str]) -> None:
    """No process at once, and nothing on disk after the next start."""
    until(lambda: not gates.machines(), 10, "machines end with their run")
    workdir.sweep()
    assert not [path for path in workdir.base_directory().iterdir() if f"vm-{process.pid}-" in path.name]


@proves("terminal-closes")
def test_the_terminal_closes(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    """As when a window is closed: the leader of the session is gone, and writing to the terminal fails."""
    profile = write_profile(gates.directory)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "--iso-evidence"]
    command += [str(gates.evidence), "--iso", str(quick_iso), "--iso-distro", str(profile), *SELECTION]
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER, *command],
        cwd=gates.directory,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    closed = threading.Event()
    reader = threading.Thread(target=drain, args=(ours, closed))
    reader.start()
    try:
        seen = wait_for_point(gates, process, "channel")
    finally:
        closed.set()
        reader.join()
        os.close(ours)
    until(lambda: process.poll() is not None, ENDS_SECONDS, "the end of the session")
    until(lambda: not gates.machines(), 10, "machines end with their run")
    until(lambda: json.loads((seen.root / "manifest.json").read_text())["ended"], ENDS_SECONDS, "the last manifest")
    verdicts = json.loads((seen.root / "verdicts.json").read_text())
    assert verdicts["launch"] == "NOT READY"
    assert {gate["verdict"] for gate in verdicts["gates"].values()} == {fault.verdict}
    assert json.loads((seen.root / "manifest.json").read_text())["interrupted"] == fault.message
    check_manifest(seen.root)


def drain(terminal: int, closed: threading.Event) -> None:
    """Read what is written to a terminal, as long as it is open."""
    while not closed.wait(0.1):
        with contextlib.suppress(BlockingIOError):
            while os.read(terminal, 65536):
                pass


@proves("worker-killed")
def test_a_worker_is_killed(fault: Fault, gates: Gates, quick_iso: Path) -> None:
    """As the kernel does when memory runs out."""
    profile = write_profile(gates.directory)
    options = ("-n", "2", "--dist", "loadgroup")
    process = gates.start("--iso", quick_iso, "--iso-distro", profile, *options)
    wait_for_point(gates, process, "kernel")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    machines = {parent(pid) for pid in gates.machines()}
    victim = next(int(pid) for pid in children if int(pid) in machines)
    assert name_of(victim).startswith("python")
    os.kill(victim, signal.SIGKILL)
    outcome: Outcome = gates.finish(process)
    check(fault, outcome, "boot")


def parent(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
