"""Moments of a run, noticed from outside: by what its evidence and /proc show while it goes on."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Gates

QEMU = "qemu-system-x86_64"
SWTPM = "swtpm"
# The kernel alone is larger; what QEMU reads of its own is not.
LOADING_BYTES = 6_000_000
POINT_SECONDS = 150.0


@dataclass(frozen=True)
class Seen:
    """What there is to see of a run: its directory in the evidence, QEMU's and swtpm's pids by name."""

    root: Path
    pids: dict[str, int]

    def machine(self, pattern: str) -> bool:
        """Whether a record of a machine is there."""
        return any(self.root.glob(f"machines/*/{pattern}"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """QEMU's events of that name, without the last line if it is being written."""
        found = []
        for path in self.root.glob("machines/*/events.jsonl"):
            lines = path.read_text().splitlines(keepends=True)
            found += [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if event["event"] == name]

    def stages(self) -> set[str]:
        """What was waited for so far."""
        try:
            lines = (self.root / "progress.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return set()
        return {json.loads(line)["stage"] for line in lines if line.endswith("\n")}


def _loading(seen: Seen) -> bool:
    io = Path(f"/proc/{seen.pids[QEMU]}/io").read_text()
    return int(io.partition("rchar: ")[2].split()[0]) > LOADING_BYTES


# In the order in which a run comes to them.
POINTS: dict[str, Callable[[Seen], bool]] = {
    "begun": lambda seen: set(seen.pids) == {QEMU, SWTPM},
    "powered-on": lambda seen: bool(seen.events("RESUME")),
    "first-picture": lambda seen: seen.machine("screen-firmware.png"),
    "loading": lambda seen: bool(seen.events("RESUME")) and _loading(seen),
    "kernel": lambda seen: any(stage.startswith("waiting for") for stage in seen.stages()),
    "channel": lambda seen: any(event["data"]["open"] for event in seen.events("VSERPORT_CHANGE")),
    "kernel-log": lambda seen: any(path.stat().st_size > 4096 for path in seen.root.glob("machines/*/kmsg.log")),
    "ready": lambda seen: seen.machine("screen-ready.png"),
    "watching": lambda seen: "watching after ready" in seen.stages(),
    "asking": lambda seen: (seen.root / "inputs/asks/begun").is_file(),
}


def name_of(pid: int) -> str:
    """The program of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
    except OSError:
        return ""


def state_of(pid: int) -> str:
    """The state of a process, as in proc_pid_stat(5); ``gone`` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def look(gates: Gates) -> Seen | None:
    """The run as it is now; None before it has evidence."""
    roots = list(gates.evidence.glob("*/*/verdicts.json"))
    if not roots:
        return None
    return Seen(roots[0].parent, {name_of(pid): pid for pid in gates.machines()})


def wait_for_point(gates: Gates, process: subprocess.Popen[str], name: str) -> Seen:
    """Return when the run is at that point.

    Fails with what the run said if it ends before that, or does not get there in time.
    """
    reached = POINTS[name]
    deadline = time.monotonic() + POINT_SECONDS
    while True:
        seen = look(gates)
        try:
            if seen is not None and reached(seen):
                return seen
        except (OSError, KeyError):
            # A process or file that has gone, or is not there yet.
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the run did not come to {name!r}:\n{process.communicate()[0]}")
        time.sleep(0.02)
