"""Every speed that the README states, measured in one run against a named floor.

    ./run bench

1. noticing ready: how long after the guest reached its target, by its own clock, the host knew;
2. a shell round trip: `GuestShell.run("true")` against the floor, a bare `echo` typed into the same port;
3. 10 MB out of the guest: `GuestShell.read_file` against the floor, `cat` of the same file on the same port;
4. what the plugin adds to a pytest run without --iso: against the same run with `-p no:osgates`. Times of runs of a
   second scatter by more than it adds; instructions (valgrind(1), where installed) do not.

    ./run bench --lynis

5. the gate `lynis` against a bare `lynis audit system` in the same guest, one after the other (half an hour).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_osgates import tools
from pytest_osgates.checks.boot import patterns
from pytest_osgates.checks.lynis_report import read_report
from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.evidence import Evidence
from pytest_osgates.model import State
from pytest_osgates.observers import lynis as observer
from pytest_osgates.observers import systemd
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.profiles.schema import BootSection
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import Injection, new_nonce
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import Firmware, MachineSpec

ROUNDS = 40
SIZE = 10_000_000


def timed(action: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of `rounds` calls."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return times


def line(what: str, ours: list[float], floor: list[float], floor_name: str) -> None:
    """Medians, and their ratio."""
    a, b = statistics.median(ours), statistics.median(floor)
    print(f"{what:<34} {a * 1000:9.1f} ms   {floor_name}: {b * 1000:.1f} ms   ratio {a / b:.2f}  (n={len(ours)})")


def bare(shell: GuestShell, command: str, wanted: int) -> None:
    """Type `command` into the port, no framing, and read `wanted` bytes."""
    shell._sock.settimeout(60)
    shell._sock.sendall(command.encode() + b"\n")
    got = 0
    while got < wanted:
        got += len(shell._sock.recv(1 << 18))


@contextmanager
def booted() -> Iterator[tuple[Boot, Path]]:
    """The demo, ready, and where its records are."""
    iso = cached_demo_iso(lambda stage, fraction: None)
    nonce = new_nonce()
    spec = MachineSpec(
        "bench", Firmware.BIOS, cdrom=iso, channel=nonce, smbios_strings=Injection(nonce).smbios_strings()
    )
    with tempfile.TemporaryDirectory() as directory:
        records = Path(directory)
        host = vm_host.select("auto", None)
        with Machine(spec, host, records, patterns()) as machine:
            plan = Plan("bench", BootSection(ready_target="multi-user.target"), None, 600.0)
            boot = Boot(machine, plan, ProgressLog(records / "progress.jsonl"))
            if not boot.run():
                raise SystemExit(f"the demo did not boot: {boot.detail}")
            print(f"{'accelerator':<34} {host.accelerator.kind}, {spec.firmware}")
            yield boot, records


def guest() -> None:
    """Measurements 1 to 3, in one boot."""
    with booted() as (boot, _):
        seen = boot.observation()
        reached, noticed = seen.phases["multi-user.target"], seen.ready_guest_s or 0.0
        print(f"{'power-on to ready':<34} {(seen.ready_s or 0.0) * 1000:9.1f} ms")
        print(f"{'noticing ready':<34} {(noticed - reached) * 1000:9.1f} ms after the guest's own time of it")
        shell = boot.machine.shell
        systemd.uptime(shell)
        line(
            "shell round trip",
            timed(lambda: shell.run("true").check(), ROUNDS),
            timed(lambda: bare(shell, "echo x", 2), ROUNDS),
            "a bare echo on the port",
        )
        shell.run(f"head -c {SIZE} /dev/urandom >/run/bench").check()
        line(
            "10 MB out of the guest",
            timed(lambda: shell.read_file("/run/bench"), 5),
            timed(lambda: bare(shell, "cat /run/bench", SIZE), 5),
            "a bare cat on the port",
        )


def machine_seconds(machine: Machine) -> float:
    """Processor time of QEMU so far (proc_pid_stat(5)), to which other programs on the machine do little."""
    assert machine._process is not None
    fields = Path(f"/proc/{machine._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lynis() -> None:
    """Measurement 5. Ours first: what the guest has read stays in its memory, which favours the second."""
    tool = tools.find("lynis", {})
    with booted() as (boot, records):
        shell = boot.machine.shell
        (records / "inputs").mkdir()
        place = observer.Place(shell, State.LIVE, Evidence(records), ProgressLog(records / "progress.jsonl"))
        begun, spent = time.perf_counter(), machine_seconds(boot.machine)
        seen = observer.observe(place, tool, 7200.0)
        ours, ours_spent = time.perf_counter() - begun, machine_seconds(boot.machine) - spent
        files = {name: data for name, data in observer.tool_files(tool).items() if name != "custom.prf"}
        shell.run("mkdir /run/bare").check()
        shell.write_file("/run/bare/tool.tar", observer.pack(files))
        shell.run("cd /run/bare && tar -xf tool.tar", timeout=120).check()
        begun, spent = time.perf_counter(), machine_seconds(boot.machine)
        shell.run(
            "cd /run/bare && sh ./lynis audit system --usecwd --quick --no-colors --plugindir ./plugins "
            "--logfile /run/bare/log --report-file /run/bare/report",
            timeout=7200.0,
        ).check()
        bare_seconds, bare_spent = time.perf_counter() - begun, machine_seconds(boot.machine) - spent
        by_hand = read_report(shell.read_file("/run/bare/report").decode("utf-8", "replace"))
    line("the gate lynis", [ours], [bare_seconds], "a bare lynis audit system")
    line("the same, QEMU's processor time", [ours_spent], [bare_spent], "a bare lynis audit system")
    print(
        f"{'hardening index, tests run':<34} {seen.report.index}, {seen.considered}; by hand: {by_hand.index}, "
        f"{by_hand.tests_done}"
    )


def plugin() -> None:
    """Measurement 4: alternating, so that a busy moment hits both."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "test_one.py").write_text("def test_one():\n    assert True\n")
        base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_one.py"]

        def run(*extra: str) -> float:
            # Processor time: other programs on the machine do not count.
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*base, *extra], cwd=directory, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

        ours, floor = [], []
        for _ in range(25):
            ours.append(run())
            floor.append(run("-p", "no:osgates"))
        difference = (statistics.median(ours) - statistics.median(floor)) * 1000
        line("a pytest run without --iso", ours, floor, "without the plugin")
        print(f"{'':<34} {difference:9.1f} ms added (medians)")
        valgrind = shutil.which("valgrind")
        if valgrind is None:
            return
        counts = []
        for extra in ([], ["-p", "no:osgates"]):
            counted = subprocess.run(
                [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", *base, *extra],
                cwd=directory,
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            counts.append(int(re.findall(r"Collected : (\d+)", counted.stderr)[-1]) / 1e6)
        print(
            f"{'the same, in instructions':<34} {counts[0]:9.0f} M    without the plugin: {counts[1]:.0f} M   "
            f"ratio {counts[0] / counts[1]:.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lynis", action="store_true", help="the gate lynis, instead of the others")
    if parser.parse_args().lynis:
        lynis()
    else:
        plugin()
        guest()
