"""What is wrong with the host: programs, firmware, memory, temporary files, caches. Nothing is booted here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_osgates import tools
from tests.e2e.conftest import Outcome
from tests.faults.table import Fault, check, proves
from tests.faults.warm import POWERLESS, Place, read_only, small_disk

PROFILE = """
schema = 1
name = "host"
[machine]
firmware = ["{firmware}"]
memory_mib = {memory}
tpm = {tpm}
[gate.boot]
[gate.kconfig]
"""
# It has a version, and KVM does not work with it; `does`: what becomes of a machine.
QEMU = """#!/bin/sh
case "$*" in
    --version) echo 'QEMU emulator version 7.2.0'; exit ;;
    *isa-debug-exit*) exit 1 ;;
esac
{does}
"""
# QEMU's end of the monitor: its descriptor is on the command line.
MONITOR = """
import json, os, re, sys, time
monitor = int(re.search(r"id=qmp,fd=(\\d+)", " ".join(sys.argv))[1])
"""
GARBAGE = MONITOR + "os.write(monitor, b'\\x1b]0;garbage\\x07\\xff{\\n' * 100)\ntime.sleep(1000)\n"
SILENT = (
    MONITOR
    + """
version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
os.write(monitor, json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\\n")
asked = json.loads(os.read(monitor, 4096))
answer = {"return": {}, **({"id": asked["id"]} if "id" in asked else {})}
os.write(monitor, json.dumps(answer).encode() + b"\\n")
time.sleep(1000)
"""
)
# The monitor's deadlines, 30 and 20 seconds, are not waited for.
IMPATIENT = """
from pytest_osgates.vm import machine, qmp
machine.CONNECT_SECONDS = 1.0
qmp.Qmp.execute.__defaults__ = (1.0,)
"""


def in_path(*folders: Path | str) -> str:
    """Source: programs are looked for here."""
    return f"import os\nos.environ['PATH'] = {':'.join(map(str, folders))!r}\n"


def program(place: Place, name: str, text: str) -> Path:
    """A program; its directory."""
    folder = place.path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


def boots(
    place: Place, inside: str, *arguments: str, firmware: str = "bios", memory: int = 256, tpm: bool = False
) -> Outcome:
    """A run of a built-in gate."""
    place.profile(PROFILE.format(firmware=firmware, memory=memory, tpm=str(tpm).lower()))
    options = ["--iso=test.iso", "--iso-distro", "bench.toml", *(arguments or ("-m", "boot"))]
    status = place.warm.run(place.path, options, inside)
    said = [(place.path / name).read_text(errors="surrogateescape") for name in ("output.err", "output")]
    outcome = Outcome(status, "".join(said))
    for path in (place.path / "osgates-evidence").glob("*/*/verdicts.json"):
        outcome.root = path.parent
        outcome.verdicts = json.loads(path.read_text())
    return outcome


def with_qemu(does: str, more: str = "", **changes: bool) -> Callable[[Place], Outcome]:
    """Machines whose QEMU is this shell script."""

    def make(place: Place) -> Outcome:
        folder = program(place, "qemu-system-x86_64", QEMU.format(does=does))
        return boots(place, in_path(folder, os.environ["PATH"]) + more, **changes)  # type: ignore[arg-type]

    return make


def with_monitor(source: str) -> Callable[[Place], Outcome]:
    """Machines whose QEMU is this Python program."""

    def make(place: Place) -> Outcome:
        folder = program(place, "monitor.py", source)
        return with_qemu(f'exec {sys.executable} {folder}/monitor.py "$@"', IMPATIENT)(place)

    return make


def instead_of_qemu(text: str) -> Callable[[Place], Outcome]:
    """Something else of that name."""
    return lambda place: boots(place, in_path(program(place, "qemu-system-x86_64", text), os.environ["PATH"]))


def without(names: Sequence[str], *arguments: str, **changes: bool) -> Callable[[Place], Outcome]:
    """Only these programs are installed, and those of the sbin directories; QEMU is one that ends."""

    def make(place: Place) -> Outcome:
        folder = program(place, "qemu-system-x86_64", QEMU.format(does="exit 1"))
        for name in names:
            (folder / name).symlink_to(f"/usr/bin/{name}")
        return boots(place, in_path(folder), *arguments, **changes)  # type: ignore[arg-type]

    return make


def without_qemu_img(place: Place) -> Outcome:
    """Of the disk with the installed system, nothing can be found out."""
    folder = program(place, "qemu-system-x86_64", QEMU.format(does="exit 1"))
    (place.path / "disk.raw").write_bytes(bytes(1 << 20))
    (place.path / "test_rows.py").write_text(INSTALLED)
    place.profile(PROFILE.format(firmware="bios", memory=256, tpm="false") + 'state = "installed"\n')
    return place.judge("--iso-disk", "disk.raw", "-m", "kconfig", inside=in_path(folder))


INSTALLED = """
import pytest
@pytest.mark.kconfig
def test_installed(os_machine, os_judge):
    raise AssertionError("there is a machine")
"""


def swtpm_that_ends(place: Place) -> Outcome:
    """An swtpm that does not know an option, and a QEMU that notices."""
    program(place, "swtpm", "#!/bin/sh\necho 'swtpm: unrecognized option --tpm2' >&2\nexit 1\n")
    return with_qemu("sleep 1; echo 'qemu: tpm-emulator: could not connect' >&2; exit 1", tpm=True)(place)


def without_firmware(place: Place) -> Outcome:
    """No descriptor is installed, for the system or for the user."""
    hidden = "".join(small_disk(str(path), 64) for path in FIRMWARE if path.is_dir())
    (place.path / "config").mkdir()
    inside = hidden + f"import os\nos.environ['XDG_CONFIG_HOME'] = {str(place.path / 'config')!r}\n"
    return boots(place, inside, firmware="uefi")


FIRMWARE = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))


def temporary(place: Place) -> Path:
    """A directory for temporary files."""
    path = place.path / "tmp"
    path.mkdir()
    return path


def tmpdir_removed(place: Place) -> Outcome:
    """As a cleaner of old files may do while a run goes on."""
    path = temporary(place)
    inside = f"import tempfile\ntempfile.tempdir = {str(path)!r}\n"
    gate = "import shutil\nfrom pytest_osgates.vm import machine\n"
    gate += "begin = machine.Machine._start\n"
    gate += f"machine.Machine._start = lambda self: (shutil.rmtree({str(path)!r}, True), begin(self))\n"
    folder = program(place, "qemu-system-x86_64", QEMU.format(does="exit 1"))
    return boots(place, in_path(folder, os.environ["PATH"]) + inside + gate)


def tmpdir_full(place: Place) -> Outcome:
    """Nothing goes into it."""
    path = temporary(place)
    inside = small_disk(str(path), 64) + f"import tempfile\ntempfile.tempdir = {str(path)!r}\n"
    fill = "from pytest_osgates.vm import machine\nbegin = machine.Machine._start\n"
    fill += "def full(self):\n"
    fill += f"    with open({str(path / 'filler')!r}, 'wb', buffering=0) as file:\n{FILL}"
    fill += "    begin(self)\nmachine.Machine._start = full\n"
    folder = program(place, "qemu-system-x86_64", QEMU.format(does="exit 1"))
    return boots(place, in_path(folder, os.environ["PATH"]) + inside + fill, firmware="uefi")


FILL = """        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""


NO_MIRROR = "http://127.0.0.1:9/debian"


def cache_is(make: Callable[[Path], object], *arguments: str, inside: str = "") -> Callable[[Place], Outcome]:
    """Something is wrong with ``$XDG_CACHE_HOME``. No argument: a run whose rows need nothing of it."""

    def run_it(place: Place) -> Outcome:
        path = place.path / "cache"
        make(path)
        more = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(path)!r}\n"
        more += f"os.environ['OSGATES_DEBIAN_MIRROR'] = {NO_MIRROR!r}\n"
        more += inside.replace("{path}", str(path))
        return boots(place, more, *arguments) if arguments else judge(place, more)

    return run_it


def judge(place: Place, inside: str) -> Outcome:
    """The rows of observations that have nothing amiss."""
    return place.judge(inside=inside)


def damaged_tool(path: Path) -> None:
    """The package of a judging tool, with a byte that is another."""
    pin = tools.pins()["kernel-hardening-checker"]
    (path / "osgates/debs").mkdir(parents=True)
    (path / f"osgates/debs/{pin.sha256}.deb").write_bytes(b"!<arch>\ndamaged")


HOLDER = """
import sys
from pytest_osgates import tools
from pytest_osgates.debian import PrivateApt, Suite
pin = tools.pins()["kernel-hardening-checker"]
with PrivateApt([Suite(suite) for suite in pin.suites])._alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def locked_by_the_dead(path: Path) -> None:
    """apt's lock is held by a process that is killed while it downloads."""
    path.mkdir()
    env = {**os.environ, "XDG_CACHE_HOME": str(path), "OSGATES_DEBIAN_MIRROR": NO_MIRROR}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    (locked,) = path.glob("osgates/apt/*/lock")
    (locked.parent / "state/lists/partial/half").write_text("half")
    holder.kill()
    holder.communicate()


def damaged_probe(path: Path) -> None:
    """What is known of KVM is half a file, for every key that there could be."""
    (path / "osgates/probe").mkdir(parents=True)


# Half of what was to be written, under the name that is asked for.
HALF_A_PROBE = """
from pathlib import Path
read = Path.read_text
Path.read_text = lambda self, *a, **k: '{"usable": tr' if self.name.startswith('kvm-') else read(self, *a, **k)
"""

HOST: dict[str, Callable[[Place], Outcome]] = {
    "qemu-missing": lambda place: boots(place, in_path(place.path)),
    "qemu-too-old": instead_of_qemu("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2)'\n"),
    "qemu-unknown": instead_of_qemu("#!/bin/sh\nprintf '\\033[2Jno such thing\\n'\n"),
    "qemu-not-runnable": instead_of_qemu("\x7fELF and nothing else"),
    "qemu-ends": with_qemu("echo 'qemu: could not load PC BIOS' >&2; exit 1"),
    "monitor-garbage": with_monitor(GARBAGE),
    "monitor-never-greets": with_qemu("exec sleep 1000", IMPATIENT),
    "monitor-falls-silent": with_monitor(SILENT),
    "swtpm-missing": without([], tpm=True),
    "swtpm-unable": swtpm_that_ends,
    "qemu-img-missing": without_qemu_img,
    "firmware-missing": without_firmware,
    "memory-too-small": lambda place: boots(place, "", memory=1 << 19),
    "kvm-demanded": lambda place: boots(
        place,
        in_path(program(place, "qemu-system-x86_64", QEMU.format(does="exit 1")), os.environ["PATH"]),
        *("-m", "boot", "--iso-accel", "kvm"),
    ),
    "tmpdir-removed": tmpdir_removed,
    "tmpdir-full": tmpdir_full,
    "cache-is-a-file": cache_is(lambda path: path.write_text("")),
    "cache-is-a-file-and-needed": cache_is(lambda path: path.write_text(""), "-m", "kconfig"),
    "cache-read-only": cache_is(Path.mkdir, "-m", "kconfig", inside=read_only("{path}")),
    "cache-unwritable": cache_is(lambda path: path.mkdir(mode=0o500), "-m", "kconfig", inside=POWERLESS),
    "cache-locked-by-the-dead": cache_is(locked_by_the_dead, "-m", "kconfig"),
    "tool-damaged": cache_is(damaged_tool, "-m", "kconfig"),
    "probe-half-written": cache_is(damaged_probe, inside=HALF_A_PROBE),
}


@proves(*HOST)
def test_the_host_is_not_as_it_should_be(fault: Fault, place: Place) -> None:
    """Refused, NOT PROVEN, or done without; always with what to do."""
    check(fault, HOST[fault.name](place), None)


# As soon as tests are collected, nothing more goes onto the disk with the evidence.
FILL_NOW = """
import contextlib
with contextlib.suppress(OSError), open("osgates-evidence/filler", "ab", buffering=0) as filler:
    while filler.write(bytes(4096)):
        pass
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [((), 4, "selected.json"), (("-n", "1"), 10, "observations/kconfig.json")]
)
def test_the_disk_is_full_before_the_first_boot(
    place: Place, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """Nothing is booted in vain, and nothing breaks; a worker of xdist says it of each row."""
    (place.path / "osgates-evidence").mkdir()
    tests = place.path / "test_rows.py"
    tests.write_text(tests.read_text() + FILL_NOW)
    outcome = place.judge(*arguments, inside=small_disk(str(place.path / "osgates-evidence"), 1024))
    assert outcome.status == status
    assert f"{said}: No space left on device" in outcome.output
    assert "EVIDENCE INCOMPLETE" in outcome.output
    assert outcome.last_line == "LAUNCH: NOT READY"
    assert "Traceback" not in outcome.output
    assert "INTERNALERROR" not in outcome.output
