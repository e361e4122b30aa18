"""Runs the pinned Lynis in the guest, from the guest's memory, with its own settings and none of the guest's."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shlex
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.lynis import LynisObservation
from pytest_osgates.checks.lynis_report import LynisLog, LynisReport, read_log, read_report
from pytest_osgates.evidence import Evidence
from pytest_osgates.model import State
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.tools import Tool, check_there
from pytest_osgates.vm.errors import ChannelError, GuestError, HostError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line, strip_escapes

# Where Lynis looks for profiles (include/functions: DiscoverProfiles), but for the directory that it is run from.
PROFILE_PLACES = ("/etc/lynis", "/usr/local/etc/lynis", "/usr/local/lynis")
# Beside the package's own default.prf: no look-up of a newer version, and reasons also for tests of other systems.
OWN_PROFILE = "skip-upgrade-test=yes\nlog-tests-incorrect-os=yes\n"
# What of the package is copied, and to where: as in the tarball that Lynis's authors publish (lynis(8), --usecwd).
_COPIED = (
    ("usr/sbin/lynis", "lynis"),
    ("usr/share/lynis/include", "include"),
    ("usr/share/lynis/db", "db"),
    ("etc/lynis/default.prf", "default.prf"),
    ("etc/lynis/plugins", "plugins"),
)
MAX_FILE = 16 << 20
MAX_PROFILES = 50
# How long one question waits in the guest: each costs an emulated guest some tenths of a second.
LOOK_SECONDS = 20
# What a run took on two emulated processors, for the display only.
EXPECTED_SECONDS = 480.0

_ENVIRONMENT = "env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C"
_COMMAND = (
    "sh ./lynis audit system --usecwd --no-colors --quick --plugindir ./plugins"
    ' --logfile "$PWD/out/log" --report-file "$PWD/out/report"'
)
# Two FIFOs. Reading from `begun` ends when the wrapper has said who it is. Into `end` it writes once it has a status;
# whoever opens it for both ways before looking for the status cannot miss that.
_WRAPPER = (
    "exec 9<>out/end; echo $$ >out/pid; : >out/begun; "
    f"{_ENVIRONMENT} {_COMMAND} </dev/null >out/screen 2>&1 9>&-; "
    "echo $? >out/status.new; mv out/status.new out/status; echo >&9"
)
_LOOK = (
    f"exec 8<>out/end; p=$(cat out/pid); [ -e out/status ] || timeout {LOOK_SECONDS} head -c 1 <&8 >/dev/null 2>&1; "
    'if [ -e out/status ]; then echo ended; elif kill -0 "$p" 2>/dev/null; then echo running; '
    "elif [ -e out/status ]; then echo ended; else echo gone; fi; tail -c 2000 out/log 2>/dev/null || :"
)
_TEST = re.compile(r"test ID ([A-Z0-9]+-[0-9]+)")
_SUM = re.compile(r"^\\?([0-9a-f]{64})  \./(.{1,200})$")


@dataclass(frozen=True)
class Place:
    """Where the state is, and where what is seen goes."""

    shell: GuestShell
    state: State
    evidence: Evidence
    progress: ProgressLog


def observe(place: Place, tool: Tool, deadline_s: float) -> LynisObservation:
    """Copy the tool, run it, read what it wrote, remove it again.

    :raise GuestError: the guest did not answer.
    :raise HostError: the tool's package is not what it should be; the evidence cannot be written.
    """
    shell, directory = place.shell, f"{place.shell.directory}/lynis"
    quoted = shlex.quote(directory)
    files = tool_files(tool)
    profiles = _guest_profiles(shell)
    begun = time.monotonic()
    try:
        shell.run(f"rm -rf {quoted} && mkdir -p {quoted}/out").check()
        shell.write_file(f"{directory}/tool.tar", pack(files))
        shell.run(f"cd {quoted} && tar -xf tool.tar && rm tool.tar && mkfifo out/begun out/end", timeout=120).check()
        status, detail = _run(place, quoted, deadline_s)
        duration = time.monotonic() - begun
        altered = _altered(shell, quoted, files)
        texts = {name: _read(shell, directory, name) for name in ("log", "report", "screen")}
    finally:
        with contextlib.suppress(GuestError, HostError):
            shell.run(f"rm -rf {quoted}")
    for name, data in texts.items():
        place.evidence.write(f"inputs/lynis/{place.state}-{name}.txt", data)
    log, report = _parsed(texts)
    return LynisObservation(
        state=place.state,
        report=report,
        log=log,
        status=status,
        detail=detail or _said(texts["screen"]),
        guest_profiles=profiles,
        altered=altered,
        duration_s=round(duration, 1),
        tool=tool.name,
        tool_version=tool.version,
        tool_sha256=tool.sha256,
    )


def tool_files(tool: Tool) -> dict[str, bytes]:
    """The files that are copied, by their path below the directory that Lynis is run from.

    :raise HostError: the package lacks one of its parts.
    """
    if tool.tree is None:
        raise HostError("Lynis is not unpacked", remedy="give its Debian package: --iso-tool lynis=FILE.deb")
    check_there(tool)
    found = {"custom.prf": OWN_PROFILE.encode()}
    for source, target in _COPIED:
        start = tool.tree / source
        paths = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
        if not paths:
            raise HostError(f"the package of Lynis {tool.version} has no {source}")
        for path in paths:
            name = target if path == start else f"{target}/{path.relative_to(start)}"
            found[name] = path.read_bytes()
    # Fewer tests would be as many fewer warnings.
    check_there(tool)
    return found


def pack(files: dict[str, bytes]) -> bytes:
    """`files` as a tar archive; they and their directories are root's alone (Lynis refuses files of others)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for parent in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
            info = tarfile.TarInfo(parent)
            info.type, info.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(info)
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _guest_profiles(shell: GuestShell) -> tuple[str, ...]:
    places = " ".join(shlex.quote(place) for place in PROFILE_PLACES)
    done = shell.run(
        f'set --; for d in {places}; do [ ! -d "$d" ] || set -- "$@" "$d/"; done; '
        "[ $# = 0 ] || find \"$@\" -maxdepth 1 -name '*.prf' -print0",
        max_output=1 << 16,
    ).check()
    names = [one_line(name.replace("//", "/"), 200) for name in done.text.split("\0") if name]
    return tuple(sorted(names)[:MAX_PROFILES])


def _run(place: Place, quoted: str, deadline_s: float) -> tuple[int | None, str]:
    """Run Lynis to its end: its exit status (None: nobody saw it end) and what went wrong."""
    shell = place.shell
    shell.run(
        f"cd {quoted} && (setsid sh -c {shlex.quote(_WRAPPER)} </dev/null >/dev/null 2>&1 &) && "
        "timeout 60 cat out/begun && [ -s out/pid ]",
        timeout=90,
    ).check()
    end = time.monotonic() + deadline_s
    begun, last = time.monotonic(), ""
    while True:
        said = (
            shell.run(f"cd {quoted} && {_LOOK}", timeout=LOOK_SECONDS + 60, max_output=1 << 16, shown="").check().text
        )
        state, _, tail = said.partition("\n")
        last = (_TEST.findall(tail) or [last])[-1]
        elapsed = time.monotonic() - begun
        place.progress.step(Step("lynis", f"running {last}".strip(), elapsed, EXPECTED_SECONDS))
        if state != "running":
            break
        if time.monotonic() >= end:
            shell.run(f'cd {quoted} && kill -s KILL -- -"$(cat out/pid)"')
            place.progress.step(Step("lynis", "stopped", elapsed, EXPECTED_SECONDS, done=True))
            return (
                None,
                f"it had not ended after {deadline_s:.0f} s (deadline_s) and was stopped, at {last or 'its start'}",
            )
    place.progress.step(Step("lynis", "done", elapsed, EXPECTED_SECONDS, done=True))
    if state != "ended":
        return None, "it is gone, and so is what waited for it"
    text = shell.run(f"cat {quoted}/out/status", max_output=4096).check().text.strip()
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise ChannelError(f"Lynis's exit status in the guest reads {one_line(text, 40)!r}")
    return int(text), ""


def _altered(shell: GuestShell, quoted: str, files: dict[str, bytes]) -> tuple[str, ...]:
    """Files that are not as they were copied, or were not copied at all: then it was not the pinned tool that ran."""
    done = shell.run(
        f"cd {quoted} && find . -path ./out -prune -o ! -type d -exec sha256sum {{}} +",
        timeout=120,
        max_output=1 << 20,
    )
    found = {}
    for line in done.text.splitlines():
        match = _SUM.match(line)
        if match is None:
            return (one_line(line, 100),)
        found[match[2]] = match[1]
    wanted = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return tuple(one_line(name, 100) for name in names[:MAX_PROFILES])


def _read(shell: GuestShell, directory: str, name: str) -> bytes:
    path = f"{directory}/out/{name}"
    if shell.run(f"test -f {shlex.quote(path)}").status != 0:
        return b""
    return shell.read_file(path, timeout=120, max_size=MAX_FILE)


def _parsed(texts: dict[str, bytes]) -> tuple[LynisLog, LynisReport]:
    log, report = (_without_escapes(texts[name].decode("utf-8", "replace")) for name in ("log", "report"))
    return read_log(log), read_report(report)


def _without_escapes(text: str) -> str:
    """Line by line: an escape sequence that a name of the guest's begins must not swallow the lines after it."""
    return "\n".join(strip_escapes(line) for line in text.split("\n"))


def _said(screen: bytes) -> str:
    """The end of what it printed, if it printed an error."""
    lines = [line.strip() for line in strip_escapes(screen.decode("utf-8", "replace")).splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("Fatal error", "[!]", "Error:"))]
    return one_line("; ".join(wrong[:3]), 300)
