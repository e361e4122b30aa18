"""What this host has: QEMU, an accelerator that truly works, firmware, swtpm, memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_osgates.vm.errors import CommandFailed, HostError, HostTimeout, MissingTool
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.spec import Accelerator, AccelKind, Firmware, FirmwareFiles, FlashImage
from pytest_osgates.vm.text import one_line

QEMU = "qemu-system-x86_64"
OLDEST_QEMU = (7, 2)
TCG = Accelerator(AccelKind.TCG, "qemu64")
KVM = Accelerator(AccelKind.KVM, "host")

INSTALL_QEMU = "apt-get install qemu-system-x86 (Fedora: dnf install qemu-system-x86-core)"
INSTALL_OVMF = "apt-get install ovmf (Fedora: dnf install edk2-ovmf)"
INSTALL_SWTPM = "apt-get install swtpm (Fedora: dnf install swtpm)"

# The probe's guest: real mode, counts down, writes to the isa-debug-exit port, which ends QEMU with status 33.
PROBE_LOOPS = 0x2E8 << 16
PROBE_STATUS = 33
PROBE_SECONDS = 2.0
# What the probe's loops take, beyond the start of QEMU, on the machine whose boots the deadlines were chosen for: two
# cores of 2.x GHz under TCG, where the demo is ready after about a minute. Measured: 0.23 to 0.25 s.
REFERENCE_SECONDS = 0.24
# What was idle when it was measured need not be so later: the run's own machines, several at a time, see to that. So
# a deadline is never shorter than the profile says; and a host that is slower than this is out of order.
LEAST_PACE, MOST_PACE = 1.0, 8.0
# For so long a measurement is taken for the present.
PACE_SECONDS = 120.0


@dataclass(frozen=True)
class Qemu:
    """The QEMU binary and its version."""

    path: str
    version: tuple[int, int, int]
    banner: str


@cache
def find_qemu() -> Qemu:
    """QEMU for x86-64.

    :raise MissingTool: absent, or older than 7.2.
    """
    path = which(QEMU, remedy=INSTALL_QEMU)
    banner = run([path, "--version"], timeout=20, remedy=INSTALL_QEMU).text.partition("\n")[0]
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", banner)
    if match is None:
        raise HostError(f"{path} --version says nothing known: {banner[:200]!r}", remedy=INSTALL_QEMU)
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version[:2] < OLDEST_QEMU:
        raise MissingTool(
            f"{path} is version {version[0]}.{version[1]}, older than {OLDEST_QEMU[0]}.{OLDEST_QEMU[1]}",
            remedy=INSTALL_QEMU,
        )
    return Qemu(path, version, banner)


def probe_rom(loops: int = PROBE_LOOPS) -> bytes:
    """A 64 KiB BIOS image: ``cli; mov ecx, loops; dec ecx; jnz; mov al, 16; out 0xf4, al; hlt``.

    It loops long enough that a KVM which emulates every instruction cannot pass for one that works.
    """
    code = b"\xfa\x66\xb9" + struct.pack("<I", loops) + b"\x66\x49\x75\xfc\xb0\x10\xe6\xf4\xf4\xeb\xfd"
    rom = bytearray(b"\xf4" * 65536)
    rom[: len(code)] = code
    # The reset vector is the last 16 bytes of the address space: jump back to the start of the ROM.
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<H", -0xFFF3 & 0xFFFF)
    return bytes(rom)


@dataclass(frozen=True)
class Probe:
    """Whether an accelerator ran the probe's guest, and if not, why."""

    accelerator: Accelerator
    usable: bool
    reason: str
    timed_out: bool = False


def probe(qemu: Qemu, accelerator: Accelerator, loops: int = PROBE_LOOPS, seconds: float | None = None) -> Probe:
    """Run the probe's guest with the very ``-cpu`` string that machines will use."""
    seconds = PROBE_SECONDS if seconds is None else seconds
    with tempfile.TemporaryDirectory(prefix="osgates-probe-") as directory:
        rom = Path(directory) / "probe.rom"
        rom.write_bytes(probe_rom(loops))
        argv = [
            *(qemu.path, "-accel", accelerator.argument, "-cpu", accelerator.cpu, "-machine", "q35", "-m", "32"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", str(rom)),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        ]
        try:
            done = run(argv, timeout=seconds, check=False)
        except HostTimeout:
            said = f"a guest of a few instructions did not finish in {seconds:.0f} s"
            return Probe(accelerator, False, said, timed_out=True)
    if done.returncode == PROBE_STATUS:
        return Probe(accelerator, True, "ran a test guest")
    said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
    return Probe(accelerator, False, f"QEMU ended with status {done.returncode}: {said or 'no message'}")


def measure_pace(qemu: Qemu, accelerator: Accelerator) -> float:
    """How many times longer a guest takes here, as busy as this host is now, than where the deadlines were chosen.

    Between `LEAST_PACE` and `MOST_PACE`; the better of two measurements, so that one hiccup does not count.

    :raise HostError: QEMU does not even run the probe's guest.
    """

    def took(loops: int) -> float:
        begun = time.monotonic()
        found = probe(qemu, accelerator, loops, 4 * PROBE_SECONDS)
        if not found.usable and not found.timed_out:
            raise HostError(
                f"{qemu.path} cannot run a guest of a few instructions: {found.reason}",
                remedy="install QEMU anew; osgates doctor shows what it says",
            )
        return time.monotonic() - begun

    started = took(1)
    best = min(took(PROBE_LOOPS) for _ in range(2))
    return min(MOST_PACE, max(LEAST_PACE, (best - started) / REFERENCE_SECONDS))


def recent_pace(qemu: Qemu, accelerator: Accelerator, cache_directory: Path | None) -> float:
    """`measure_pace`, or what it gave within the last `PACE_SECONDS`.

    :raise HostError: QEMU does not even run the probe's guest.
    """
    if cache_directory is None:
        return measure_pace(qemu, accelerator)
    key = hashlib.sha256(f"{_read('/proc/sys/kernel/random/boot_id')}\n{qemu.banner}\n{accelerator}\n1".encode())
    stored = cache_directory / f"pace-{key.hexdigest()[:24]}.json"
    # Since the host started, in its sleep too: nobody steps this clock.
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(stored.read_text())
        if 0 <= now - float(data["at"]) <= PACE_SECONDS and LEAST_PACE <= float(data["pace"]) <= MOST_PACE:
            return float(data["pace"])
    pace = measure_pace(qemu, accelerator)
    # A cache that cannot be written costs a second next time, not this run.
    with contextlib.suppress(OSError):
        partial = stored.with_suffix(f".{os.getpid()}")
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"pace": pace, "at": now}))
        partial.replace(stored)
    return pace


def probe_kvm(qemu: Qemu, cache_directory: Path | None, device: Path = Path("/dev/kvm")) -> Probe:
    """Whether KVM is truly usable. ``/dev/kvm`` may exist, open, and still run nothing (nested, emulated).

    The answer is kept per boot of this host, QEMU version and CPU string.
    """
    if not device.exists():
        return Probe(KVM, False, f"{device} does not exist")
    if not os.access(device, os.R_OK | os.W_OK):
        return Probe(KVM, False, f"no permission for {device} (add the user to the group kvm)")
    boot_id = _read("/proc/sys/kernel/random/boot_id")
    key = hashlib.sha256(f"{boot_id}\n{qemu.banner}\n{KVM.cpu}\n{os.getuid()}\n1".encode()).hexdigest()[:24]
    stored = None if cache_directory is None else cache_directory / f"kvm-{key}.json"
    if stored is not None:
        # Absent, unreadable, cut short or not ours: asked anew.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            data = json.loads(stored.read_text())
            return Probe(KVM, data["usable"] is True, one_line(str(data["reason"]), 400))
    found = probe(qemu, KVM)
    # A guest that was too slow may have been so because the host is busy right now: asked again next time.
    if stored is not None and (found.usable or not found.timed_out):
        partial = stored.with_suffix(f".{os.getpid()}")
        # A cache that cannot be written costs two seconds next time, not this run.
        with contextlib.suppress(OSError):
            stored.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps({"usable": found.usable, "reason": found.reason}))
                partial.replace(stored)
            finally:
                partial.unlink(missing_ok=True)
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def descriptor_directories() -> list[Path]:
    """Where firmware descriptors live, most important first (QEMU, docs/interop/firmware.json)."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    user = Path(config) if Path(config).is_absolute() else Path.home() / ".config"
    return [user / "qemu/firmware", Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]


def find_firmware(firmware: Firmware, directories: Sequence[Path] | None = None) -> FirmwareFiles | None:
    """The flash images for `firmware`; None for BIOS, which QEMU brings along.

    :raise MissingTool: no descriptor of this host offers it.
    """
    if firmware is Firmware.BIOS:
        return None
    seen: dict[str, Path] = {}
    for directory in directories if directories is not None else descriptor_directories():
        if directory.is_dir():
            for path in directory.glob("*.json"):
                seen.setdefault(path.name, path)
    for _, path in sorted(seen.items()):
        files = _fits(path, firmware)
        if files is not None:
            return files
    raise MissingTool(f"no firmware descriptor of this host offers {firmware} for q35", remedy=INSTALL_OVMF)


def _fits(path: Path, firmware: Firmware) -> FirmwareFiles | None:
    try:
        data = json.loads(path.read_text()) if path.stat().st_size else {}
        features = set(data.get("features", ()))
        mapping = data.get("mapping", {})
        machines = [
            machine
            for target in data.get("targets", ())
            if target.get("architecture") == "x86_64"
            for machine in target.get("machines", ())
        ]
        if "uefi" not in data.get("interface-types", ()) or mapping.get("device") != "flash":
            return None
        if mapping.get("mode", "split") != "split" or not any("q35" in machine for machine in machines):
            return None
        secure = {"secure-boot", "enrolled-keys"} <= features
        if (firmware is Firmware.UEFI_SECUREBOOT) is not secure:
            return None
        if firmware is Firmware.UEFI and "secure-boot" in features:
            return None
        code, variables = (
            FlashImage(Path(mapping[part]["filename"]), str(mapping[part].get("format", "raw")))
            for part in ("executable", "nvram-template")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not (code.path.is_file() and variables.path.is_file()):
        return None
    return FirmwareFiles(code, variables, "requires-smm" in features, path)


def swtpm_version() -> str:
    """The banner of swtpm.

    :raise MissingTool: absent.
    """
    tool = which("swtpm", remedy=INSTALL_SWTPM)
    return run([tool, "--version"], timeout=20, remedy=INSTALL_SWTPM).text.partition("\n")[0]


def memory_available_mib() -> int:
    """MemAvailable of /proc/meminfo (proc(5))."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


@dataclass(frozen=True)
class Host:
    """What machines on this host are made with; `pace`: see `measure_pace`."""

    qemu: Qemu
    accelerator: Accelerator
    kvm: Probe
    pace: float = 1.0


def select(wanted: str, cache_directory: Path | None) -> Host:
    """The host with the accelerator that `wanted` (auto, kvm, tcg) leads to. Never a silent fall-back from kvm.

    :raise HostError: kvm was demanded and does not work; or no QEMU.
    """
    if platform.machine() not in {"x86_64", "AMD64"} and wanted == "kvm":
        raise HostError(f"KVM cannot run x86-64 guests on {platform.machine()}", remedy="use --iso-accel tcg")
    qemu = find_qemu()
    kvm = probe_kvm(qemu, cache_directory)
    if wanted == "kvm" and not kvm.usable:
        raise HostError(
            f"KVM was demanded and is not usable here: {kvm.reason}",
            remedy="mend it (osgates doctor shows it), or run with --iso-accel tcg, which is slower",
        )
    if wanted == "tcg" or not kvm.usable:
        return Host(qemu, TCG, kvm)
    return Host(qemu, KVM, kvm)


def create_overlay(base: Path, overlay: Path) -> None:
    """A qcow2 file over `base`, which is never written. The base's format is probed by qemu-img.

    :raise HostError: qemu-img is missing or refuses the base.
    """
    tool = which("qemu-img", remedy="apt-get install qemu-utils (Fedora: dnf install qemu-img)")
    try:
        info = json.loads(run([tool, "info", "--output=json", str(base)], timeout=60).text)
        form = str(info["format"])
        if info.get("backing-filename") or info.get("encrypted"):
            raise HostError(
                f"{base} has a backing file or is an encrypted qcow2", remedy="flatten it: qemu-img convert"
            )
        run([tool, "create", "-q", "-f", "qcow2", "-b", str(base.resolve()), "-F", form, str(overlay)], timeout=60)
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"qemu-img says nothing usable of {base}: {error}") from error
    except CommandFailed as error:
        raise HostError(f"{base} is not a disk image: {error}", remedy="give a raw or qcow2 disk") from error
