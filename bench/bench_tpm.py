"""What a row of the gate `tpm` takes, against the bare boots of that row. Run on a quiet machine:

    .venv/bin/python bench/bench_tpm.py                      untampered-1, fresh and command-line-edited
    .venv/bin/python bench/bench_tpm.py ROW ...              others
    .venv/bin/python bench/bench_tpm.py --machine DIR ...    on a machine that `osgates demo-disk --tpm` made
    .venv/bin/python bench/bench_tpm.py --unlocks 20         the untampered machine, so many times

The floor, in the same run, is what somebody would do by hand: the same disk, tampered with beforehand, in a plain
QEMU with a plain swtpm, and pexpect at its serial console, which types the same words as soon as they are asked for.
Ours is the whole row: copying, tampering, boots, guesses, undoing and the verdict.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect.socket_pexpect

from pytest_osgates.checks import tpm as gate
from pytest_osgates.checks.tpm_model import BootSeen, TpmPolicy, tamper_of
from pytest_osgates.debian.store import sha256_of
from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.observers import tpm
from pytest_osgates.observers.tpm_talk import Phrases
from pytest_osgates.observers.tpm_tamper import Workshop
from pytest_osgates.paths import cache_dir
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import MachineSection
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.spec import Firmware, MachineSpec

ROWS = ("untampered-1", "fresh", "command-line-edited")
WANTED = 1.1
DEADLINE_S = 900.0
CONNECT_S = 30.0
PROMPT = re.compile(rb"Enter passphrase for [^\r\n]*: ?")
REFUSED = re.compile(rb"The disk was not unlocked")
LOGIN = re.compile(rb"[\w.-]+ login: ?")
# cryptsetup throws away what was typed before it turned the echo off: as long as a quick hand needs.
PAUSE_S = 0.5


@dataclass(frozen=True)
class Bench:
    """What all rows have in common."""

    original: Home
    sha256: str
    policy: TpmPolicy
    machine: MachineSection
    host: vm_host.Host
    scratch: Path

    def spec(self, name: str, home: Home, with_tpm: bool) -> MachineSpec:
        section = self.machine
        return MachineSpec(
            name=name,
            firmware=Firmware.UEFI_SECUREBOOT,
            home=home,
            memory_mib=section.memory_mib,
            cpus=section.cpus,
            cpu_model=section.cpu_model,
            tpm=with_tpm,
        )

    def records(self, role: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{role}-", dir=self.scratch))


def ours(bench: Bench, case: str) -> tuple[float, tuple[BootSeen, ...]]:
    """Seconds of the whole row, and its boots.

    :raise SystemExit: the row does not pass: its time means nothing.
    """
    row = tpm.Row(
        case=case,
        policy=bench.policy,
        phrases=Phrases.of(bench.policy, tpm.passphrase(bench.policy), tpm.pin(bench.policy)),
        spec=bench.spec,
        host=bench.host,
        records=bench.records,
        say=lambda _stage, _seconds: None,
        directory=Path(),
    )
    begun = time.perf_counter()
    seen = tpm.observe(bench.original, row, bench.sha256)
    findings = gate.judge(seen, bench.policy)
    took = time.perf_counter() - begun
    if findings:
        raise SystemExit(f"{case}: {findings[0].seen}")
    return took, seen.boots


def floor(bench: Bench, case: str, boots: Sequence[BootSeen]) -> float:
    """Seconds from power-on to the last line of each of the same boots, in a plain QEMU."""
    tamper = tamper_of(case)
    directory = Path(tempfile.mkdtemp(prefix="bare-", dir=bench.scratch))
    home = bench.original.copy(directory / "machine")
    workshop = Workshop(
        original=bench.original,
        home=home,
        firmware=Firmware.UEFI_SECUREBOOT,
        parameter=bench.policy.parameter,
        scratch=directory,
        log=directory / "swtpm.log",
        patience=bench.host.pace,
    )
    if tamper is not None:
        workshop.apply(tamper)
    texts = Phrases.of(bench.policy, tpm.passphrase(bench.policy))
    took = 0.0
    for boot in boots:
        if boot.role == "undone" and tamper is not None:
            workshop.undo(tamper)
        words = [texts.right if attempt.what == "right" else texts.guesses[attempt.what] for attempt in boot.tries]
        took += bare_boot(bench, home, words, with_tpm=tamper is None or tamper.how != "no-tpm")
    shutil.rmtree(directory)
    return took


def bare_boot(bench: Bench, home: Home, words: Sequence[str], *, with_tpm: bool) -> float:
    """Type `words`, each at a prompt of its own, and wait for the login: how many seconds after power-on."""
    with (
        tempfile.TemporaryDirectory(dir=bench.scratch) as sockets,
        _swtpm(Path(sockets), home, with_tpm) as tpm_socket,
    ):
        serial = Path(sockets) / "serial"
        begun = time.perf_counter()
        qemu = subprocess.Popen(bare_arguments(bench, home, serial, tpm_socket), stdin=subprocess.DEVNULL)
        try:
            with connected(serial, qemu) as line:
                talk = pexpect.socket_pexpect.SocketSpawn(line, timeout=DEADLINE_S)
                for number, word in enumerate(words):
                    talk.expect(PROMPT)
                    time.sleep(PAUSE_S)
                    talk.send(f"{word}\r")
                    if number < len(words) - 1:
                        talk.expect(REFUSED)
                talk.expect(LOGIN)
                return time.perf_counter() - begun
        finally:
            qemu.kill()
            qemu.wait()


def bare_arguments(bench: Bench, home: Home, serial: Path, tpm_socket: Path | None) -> list[str]:
    """What the machine needs to be the same one to its TPM, and nothing else."""
    firmware = vm_host.find_firmware(Firmware.UEFI_SECUREBOOT)
    if firmware is None:
        raise SystemExit("no firmware for Secure Boot: apt-get install ovmf")
    section, accelerator = bench.machine, bench.host.accelerator
    arguments = [
        *(str(bench.host.qemu.path), "-nodefaults", "-no-user-config", "-machine", "q35,smm=on"),
        *("-accel", accelerator.argument, "-cpu", section.cpu_model or accelerator.cpu, "-smp", str(section.cpus)),
        *("-m", f"{section.memory_mib}M", "-display", "none", "-device", "VGA", "-device", "pvpanic-pci"),
        *("-chardev", f"socket,id=serial,path={serial},server=on,wait=on", "-serial", "chardev:serial"),
        *("-device", "virtio-rng-pci", "-device", "virtio-scsi-pci"),
        *("-drive", f"if=pflash,unit=0,readonly=on,format=raw,file={firmware.code.path}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={home.variables}"),
        *("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"),
        *("-drive", f"if=none,id=disk0,format=qcow2,file={home.disk}"),
        *("-device", "virtio-blk-pci,drive=disk0,bootindex=0"),
        *("-netdev", "hubport,id=net0,hubid=0", "-device", "virtio-net-pci,netdev=net0,romfile="),
    ]
    if tpm_socket is not None:
        arguments += [
            *("-chardev", f"socket,id=tpm,path={tpm_socket}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
        ]
    return arguments


@contextmanager
def _swtpm(sockets: Path, home: Home, with_tpm: bool) -> Iterator[Path | None]:
    """Where a plain swtpm listens that has the machine's state."""
    if not with_tpm:
        yield None
        return
    path = sockets / "tpm"
    home.tpm.mkdir(exist_ok=True)
    swtpm = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={home.tpm}", "--ctrl", f"type=unixio,path={path}"],
        stdin=subprocess.DEVNULL,
    )
    try:
        _until(path, swtpm)
        yield path
    finally:
        swtpm.kill()
        swtpm.wait()


def _until(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the socket of `process`."""
    deadline = time.monotonic() + CONNECT_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} does not listen")
        time.sleep(0.01)


@contextmanager
def connected(path: Path, process: subprocess.Popen[bytes]) -> Iterator[socket.socket]:
    """The console of `process`, which starts once somebody is there."""
    _until(path, process)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        yield line


def main(rows: Sequence[str], machine: Path | None, unlocks: int) -> None:
    """Print the figures."""
    found = vm_host.select("auto", cache_dir("probe"))
    profile = loader.load(loader.find("demo-tpm"))
    with tempfile.TemporaryDirectory(prefix="osgates-bench-") as name:
        scratch = Path(name)
        if machine is None:
            machine = scratch / "machine"
            iso = cached_demo_iso(lambda _stage, _fraction: None)
            build_demo_machine(iso, machine, lambda _stage, _fraction: None, found)
        home = Home.at(machine)
        bench = Bench(home, sha256_of(home.disk), profile.policy("tpm"), profile.machine, found, scratch)
        if unlocks:
            times = []
            for _ in range(unlocks):
                took, boots = ours(bench, "untampered-1")
                times.append(took)
                print(f"{boots[0].outcome} after {boots[0].at:.1f} s, verdict after {took:.1f} s", flush=True)
            print(f"{len(times)} of {unlocks} unlocked by themselves: {min(times):.1f} to {max(times):.1f} s")
            return
        for row in rows:
            took, boots = ours(bench, row)
            least = floor(bench, row, boots)
            print(
                f"{row:<20} {len(boots)} boots: {took:6.1f} s   floor {least:6.1f} s   "
                f"ratio {took / least:.2f} (of {WANTED})",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--machine", type=Path)
    parser.add_argument("--unlocks", type=int, default=0)
    given = parser.parse_args()
    main(given.rows or ROWS, given.machine, given.unlocks)
