"""Random faults at random times: ``python -m tests.faults.chaos N`` (``./run chaos N``).

Each run judges a real ISO in a process of its own, alone or with two workers. At a random moment something is struck;
then the run must end by itself, say nothing untrue, leave its evidence whole, and leave no process. At the end an
undisturbed run must still pass: nothing that was struck may have spoilt a cache. The seed is printed, so that runs
can be repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.vm import workdir
from tests.e2e.conftest import Gates, quiet
from tests.e2e.quick import quick_profile
from tests.faults.points import QEMU, SWTPM, name_of
from tests.faults.quick_guest import make_quick_iso, write_profile
from tests.faults.table import check_manifest
from tests.heeding import heed_interruptions

ENDED = "ended before"
# Gates of the demo that a run judges, and within how many seconds it is struck.
SOME_GATES = (("boot", 150.0), ("kconfig or settings", 100.0), ("telemetry", 150.0), ("boot or settings", 180.0))
# Beyond what the run would take by itself on a quiet machine. What hangs hangs for ever.
ENDS_SECONDS = 900.0
GONE_SECONDS = 10.0


@dataclass
class Chaos:
    """One run that is struck, and what is wrong with what came of it."""

    gates: Gates
    process: subprocess.Popen[str]
    random: random.Random
    workers: int
    wrong: list[str] = field(default_factory=list)
    # The machine that was struck, by the name of its directory in the evidence; "*": the whole run.
    struck: str = ""
    told: str = ""

    @property
    def root(self) -> Path | None:
        """The run's evidence."""
        found = list(self.gates.evidence.glob("*/*/verdicts.json"))
        return found[0].parent if found else None

    def passed(self) -> set[tuple[str, str]]:
        """(gate, row) that have passed so far."""
        if self.root is None:
            return set()
        gates = json.loads((self.root / "verdicts.json").read_text())["gates"]
        return {
            (gate, row)
            for gate, entry in gates.items()
            for row, one in entry["rows"].items()
            if one["verdict"] == "PASS"
        }


def _machine_of(pid: int) -> str:
    """The name of the machine that a process belongs to: QEMU's ``-name``, or swtpm's directory."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if "-name" in words:
            return words[words.index("-name") + 1].partition(",")[0].removeprefix("osgates-")
    return "*"


def _strike_machine(program: str, *numbers: signal.Signals) -> Callable[[Chaos], str]:
    def strike(chaos: Chaos) -> str:
        pids = [pid for pid in chaos.gates.machines() if name_of(pid) == program]
        if not pids:
            return ""
        victim = chaos.random.choice(pids)
        # Which machine an swtpm belongs to is seen only through its QEMU, so any may be meant.
        chaos.struck = _machine_of(victim) if program == QEMU else "*"
        for number in numbers:
            os.kill(victim, number)
        return f"{program} {victim} ({chaos.struck})"

    return strike


def _strike_run(*numbers: signal.Signals) -> Callable[[Chaos], str]:
    def strike(chaos: Chaos) -> str:
        chaos.struck = "*"
        for number in numbers:
            chaos.process.send_signal(number)
            time.sleep(chaos.random.uniform(0.0, 0.5))
        return f"pytest {chaos.process.pid}"

    return strike


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill_worker(chaos: Chaos) -> str:
    workers = [pid for pid in _children(chaos.process.pid) if name_of(pid).startswith("python")]
    if chaos.workers == 0 or not workers:
        return ""
    chaos.struck = "*"
    victim = chaos.random.choice(workers)
    os.kill(victim, signal.SIGKILL)
    return f"worker {victim}"


def _remove_work(chaos: Chaos) -> str:
    """What a cleaner of temporary files does."""
    owners = {chaos.process.pid, *_children(chaos.process.pid)}
    there = [
        path
        for path in workdir.base_directory().iterdir()
        if path.name.startswith(tuple(f"vm-{pid}-" for pid in owners))
    ]
    if not there:
        return ""
    chaos.struck = "*"
    victim = chaos.random.choice(there)
    shutil.rmtree(victim, ignore_errors=True)
    return victim.name


def _spoil_probe(chaos: Chaos) -> str:
    """A cache whose content is cut short: for the runs that follow."""
    where = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osgates/probe"
    for path in where.glob("*.json"):
        path.write_bytes(path.read_bytes()[:5])
    return "cached probe"


def _hiccup(chaos: Chaos) -> str:
    """A host that is away for a moment (suspended, swapping): no fault of anybody's."""
    pids = [pid for pid in chaos.gates.machines() if name_of(pid) == QEMU]
    if not pids:
        return ""
    chaos.struck = "*"
    victim = chaos.random.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGSTOP)
        time.sleep(chaos.random.uniform(0.05, 3.0))
        os.kill(victim, signal.SIGCONT)
    return f"{QEMU} {victim}"


# The run may pass all the same, and rightly.
HARMLESS = {"cached probe cut short", "QEMU stopped for a moment", "work directory removed"}
STRIKES: dict[str, Callable[[Chaos], str]] = {
    "QEMU killed": _strike_machine(QEMU, signal.SIGKILL),
    "QEMU ended": _strike_machine(QEMU, signal.SIGTERM),
    "QEMU stopped": _strike_machine(QEMU, signal.SIGSTOP),
    "QEMU stopped for a moment": _hiccup,
    "swtpm killed": _strike_machine(SWTPM, signal.SIGKILL),
    "swtpm ended": _strike_machine(SWTPM, signal.SIGTERM),
    "swtpm stopped": _strike_machine(SWTPM, signal.SIGSTOP),
    "Ctrl-C": _strike_run(signal.SIGINT),
    "Ctrl-C twice": _strike_run(signal.SIGINT, signal.SIGINT),
    "SIGTERM": _strike_run(signal.SIGTERM),
    "SIGHUP": _strike_run(signal.SIGHUP),
    "SIGKILL": _strike_run(signal.SIGKILL),
    "worker killed": _kill_worker,
    "work directory removed": _remove_work,
    "cached probe cut short": _spoil_probe,
}


def one(number: int, seed: int, *, whole: bool) -> tuple[str, list[str]]:
    """One struck run: what was done, and what was wrong. Nothing is done to a run that has ended by then."""
    dice = random.Random(f"{seed}-{number}")
    directory = Path(tempfile.mkdtemp(prefix="osgates-chaos-"))
    os.environ["OSGATES_TEST_DIRECTORY"] = str(directory)
    gates = Gates(directory)
    workers = dice.choice((0, 2))
    options = ["-n", "2", "--dist", "loadgroup"] if workers else []
    if whole:
        iso, profile = cached_demo_iso(quiet), quick_profile(directory, watch_s=20, idle_s=20)
        marks, longest = dice.choice(SOME_GATES)
        arguments = ["-m", marks]
    else:
        iso, profile = make_quick_iso(cached_demo_iso(quiet), directory), write_profile(directory)
        marks, arguments, longest = "all", [], 35.0
    names = [name for name in STRIKES if workers or name != "worker killed"]
    dice.shuffle(names)
    after = dice.uniform(0.5, longest)
    process = gates.start("--iso", iso, "--iso-distro", profile, *arguments, *options)
    try:
        return _struck(number, Chaos(gates, process, dice, workers), names, after, longest, marks)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=ENDS_SECONDS)


def _struck(
    number: int, chaos: Chaos, names: list[str], after: float, longest: float, marks: str
) -> tuple[str, list[str]]:
    process, workers, directory, name = chaos.process, chaos.workers, chaos.gates.directory, names[0]
    before: set[tuple[str, str]] = set()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    if process.poll() is None:
        before = chaos.passed()
        # Where there is nothing of a kind to strike at that moment, something else is struck.
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                chaos.told = STRIKES[name](chaos)
            if chaos.told:
                break
    _judge(chaos, name, before, longest)
    left = f"{number:3} {name:26} after {after:5.1f} s, {workers} workers, {marks}: {chaos.told or ENDED}"
    if not chaos.wrong:
        shutil.rmtree(directory, ignore_errors=True)
    return left, [*chaos.wrong, *([f"see {directory}"] if chaos.wrong else [])]


def _judge(chaos: Chaos, name: str, before: set[tuple[str, str]], longest: float) -> None:
    process, gates, wrong = chaos.process, chaos.gates, chaos.wrong
    try:
        output, _ = process.communicate(timeout=longest + ENDS_SECONDS)
    except subprocess.TimeoutExpired:
        wrong.append("it does not end")
        process.kill()
        output, _ = process.communicate()
    (gates.directory / "output").write_text(output)
    deadline = time.monotonic() + GONE_SECONDS
    while gates.machines() and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in gates.machines():
        wrong.append(f"left running: {name_of(pid)} {pid}")
        os.kill(pid, signal.SIGKILL)
    if "Traceback" in output and name != "SIGKILL":
        wrong.append("a traceback")
    struck = bool(chaos.told) and name not in HARMLESS
    if chaos.root is None:
        if process.returncode == 0:
            wrong.append("status 0 without evidence")
        return
    verdicts = json.loads((chaos.root / "verdicts.json").read_text())
    _false_passes(chaos, verdicts, before, struck=struck)
    if name != "SIGKILL":
        try:
            check_manifest(chaos.root)
        except (AssertionError, OSError, ValueError) as error:
            wrong.append(f"the manifest does not hold: {error}")
        swept = [path for path in workdir.base_directory().iterdir() if f"-{process.pid}-" in path.name]
        if swept and not chaos.workers:
            wrong.append(f"left on disk: {swept}")
    workdir.sweep()


def _false_passes(chaos: Chaos, verdicts: dict[str, Any], before: set[tuple[str, str]], *, struck: bool) -> None:
    after = chaos.passed()
    ready = verdicts["launch"] != "NOT READY"
    status = chaos.process.returncode
    everything = {(gate, row) for gate, entry in verdicts["gates"].items() for row in entry["rows"]}
    if ready != (status == 0):
        chaos.wrong.append(f"{verdicts['launch']} with status {status}")
    if not struck:
        return
    if status == 0 and not everything <= before:
        chaos.wrong.append(f"a PASS of a run that was struck: {sorted(after - before)}")
    # What was struck was in use until then: a row of the same machine that passes later has not seen it.
    if chaos.struck != "*":
        late = {(gate, row) for gate, row in after - before if (row or chaos.struck) == chaos.struck}
        if late and chaos.workers == 0:
            chaos.wrong.append(f"rows of the struck machine passed: {sorted(late)}")


def main() -> int:
    """Exit status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="go on with this number of the same seed")
    parser.add_argument("--quick", action="store_true", help="a guest that is ready within seconds, not the demo")
    options = parser.parse_args()
    heed_interruptions()
    print(f"seed {options.seed}", flush=True)
    iso = cached_demo_iso(quiet)
    digest = hashlib.sha256(iso.read_bytes()).hexdigest()
    done: Counter[str] = Counter()
    bad = 0
    for number in range(options.first, options.first + options.count):
        line, wrong = one(number, options.seed, whole=not options.quick)
        done[ENDED if line.endswith(ENDED) else line[4:30].strip()] += 1
        bad += bool(wrong)
        print(line + "".join(f"\n    WRONG: {what}" for what in wrong), flush=True)
    if hashlib.sha256(cached_demo_iso(quiet).read_bytes()).hexdigest() != digest:
        bad += 1
        print("WRONG: the cached image changed")
    if not _undisturbed(whole=not options.quick):
        bad += 1
        print("WRONG: an undisturbed run does not pass any more")
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    print(f"{options.count} runs, {bad} with something wrong")
    return 1 if bad else 0


def _undisturbed(*, whole: bool) -> bool:
    directory = Path(tempfile.mkdtemp(prefix="osgates-chaos-"))
    gates = Gates(directory)
    if whole:
        iso, profile = cached_demo_iso(quiet), quick_profile(directory, watch_s=20)
        process = gates.start("--iso", iso, "--iso-distro", profile, "-m", "boot or kconfig or settings")
    else:
        iso = make_quick_iso(cached_demo_iso(quiet), directory)
        process = gates.start("--iso", iso, "--iso-distro", write_profile(directory))
    output, _ = process.communicate(timeout=900)
    (directory / "output").write_text(output)
    if process.returncode == 0:
        shutil.rmtree(directory, ignore_errors=True)
        return True
    print(output)
    return False


if __name__ == "__main__":
    sys.exit(main())
