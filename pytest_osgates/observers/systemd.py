"""What systemd in the guest says, asked over the channel. Everything it answers is parsed with bounds."""

from __future__ import annotations

import json
import re

from pytest_osgates.checks.boot import UnitFailure
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.[a-z]+")
MAX_UNITS = 500

# sd-messages(3): SD_MESSAGE_UNIT_FAILURE_RESULT, logged each time that a unit enters the failed state or fails and
# is started again.
FAILURE_MESSAGE = "d9b373ed55a64feb8242e02dbe79a49c"

# SD_MESSAGE_UNIT_STARTED: a unit, such as a target, has been started.
STARTED_MESSAGE = "39f53479d3a045ac8e11786248231fbf"

_STAMPS = (
    # Property of the manager (org.freedesktop.systemd1(5)), and the phase that begins there.
    ("KernelTimestampMonotonic", "kernel"),
    ("InitRDTimestampMonotonic", "initrd"),
    ("UserspaceTimestampMonotonic", "userspace"),
)


def _unit(name: str) -> str:
    if not _UNIT.fullmatch(name):
        raise ChannelError(f"the guest named something that is no unit: {one_line(name, 80)!r}")
    return name


def default_target(shell: GuestShell) -> str:
    """``systemctl get-default``."""
    return _unit(shell.run("systemctl get-default", timeout=30).check().text.strip())


def active_states(shell: GuestShell, *units: str) -> dict[str, str]:
    """The active state of each unit; systemctl answers one line for each, in order."""
    quoted = " ".join(_unit(unit) for unit in units)
    lines = shell.run(f"systemctl is-active -- {quoted}", timeout=30).text.split()
    return dict(zip(units, lines, strict=True)) if len(lines) == len(units) else {}


def uptime(shell: GuestShell) -> float:
    """Seconds since the guest's kernel started (proc(5), /proc/uptime)."""
    text = shell.run("cat /proc/uptime", timeout=30).check().text
    match = re.match(r"(\d{1,12}(?:\.\d{1,6})?) ", text)
    if match is None:
        raise ChannelError(f"/proc/uptime says {one_line(text, 80)!r}")
    return float(match[1])


def timestamps(shell: GuestShell, target: str) -> dict[str, float]:
    """Seconds after the kernel's start at which initrd, userspace and `target` began."""
    names = ",".join(name for name, _ in _STAMPS)
    text = shell.run(f"systemctl show -p {names}", timeout=30).check().text
    text += shell.run(f"systemctl show -p ActiveEnterTimestampMonotonic -- {_unit(target)}", timeout=30).check().text
    values = dict(re.findall(r"^(\w+)=(\d{1,18})$", text, re.MULTILINE))
    found = {phase: int(values[name]) / 1e6 for name, phase in _STAMPS if int(values.get(name, 0)) > 0}
    if int(values.get("ActiveEnterTimestampMonotonic", 0)) > 0:
        found[target] = int(values["ActiveEnterTimestampMonotonic"]) / 1e6
    return found


def system_state(shell: GuestShell) -> str:
    """``systemctl is-system-running``: running, degraded, starting, ..."""
    return one_line(shell.run("systemctl is-system-running", timeout=30).text, 40)


def jobs(shell: GuestShell) -> str:
    """The queued jobs, in one line."""
    return one_line(shell.run("systemctl list-jobs --no-legend --plain --full", timeout=30).text, 400)


def secure_boot(shell: GuestShell) -> bool | None:
    """The UEFI variable SecureBoot (UEFI Specification 3.3): 4 bytes of attributes, 1 of value; None without it."""
    path = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    done = shell.run(f"cat {path}", timeout=30)
    if done.status != 0 or len(done.stdout) != 5:
        return None
    return done.stdout[4] == 1


def reached_target(line: str) -> str | None:
    """The target that one line of the journal (JSON) says was reached; None for anything else."""
    if STARTED_MESSAGE not in line or ".target" not in line:
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("_PID") != "1" or entry.get("MESSAGE_ID") != STARTED_MESSAGE:
        return None
    unit = entry.get("UNIT")
    return unit if isinstance(unit, str) and unit.endswith(".target") else None


def failures(shell: GuestShell) -> tuple[UnitFailure, ...]:
    """Every unit that is failed now, and every one that the journal of this boot says has failed.

    :raise ChannelError: the journal or the list cannot be read: then nothing is known.
    """
    listed = shell.run("systemctl list-units --all --state=failed --plain --no-legend --full", timeout=60).check()
    failed = {line.split()[0] for line in listed.text.splitlines() if line.split()}
    journal = shell.run(f"journalctl -b -o json --no-pager -q -n 20000 MESSAGE_ID={FAILURE_MESSAGE}", timeout=120)
    # With -q and no match journalctl ends with status 1 and an empty output; without any journal it says why.
    if journal.status not in {0, 1} or journal.stderr.strip():
        said = one_line(journal.stderr.decode("utf-8", "replace"))
        raise ChannelError(f"the guest's journal cannot be read (status {journal.status}): {said}")
    probe = shell.run("journalctl -b -o json --no-pager -q -n 1", timeout=60)
    if probe.status != 0 or not probe.stdout.strip():
        raise ChannelError("the guest's journal is empty: nothing is known of units that failed and came back")
    found: dict[tuple[bool, str], UnitFailure] = {}
    for line in journal.text.splitlines():
        failure = _from_journal(line, failed)
        if failure is not None:
            found.setdefault((failure.user, failure.unit), failure)
    for name in sorted(failed):
        found.setdefault((False, _unit(name)), UnitFailure(unit=_unit(name), still_failed=True))
    if len(found) > MAX_UNITS:
        raise ChannelError(f"the guest names {len(found)} failed units")
    return tuple(found.values())


def _from_journal(line: str, failed: set[str]) -> UnitFailure | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ChannelError(f"the guest's journal is not JSON: {one_line(line, 80)!r}") from None
    if not isinstance(entry, dict):
        raise ChannelError("the guest's journal is not a list of objects")
    # Only PID 1 and user managers may say so: other fields of an entry come from whoever wrote it.
    if entry.get("_PID") != "1" and str(entry.get("_SYSTEMD_UNIT")).split("@")[0] != "user":
        return None
    user = "UNIT" not in entry
    name = entry.get("USER_UNIT" if user else "UNIT")
    if not isinstance(name, str):
        return None
    stamp = str(entry.get("__MONOTONIC_TIMESTAMP", ""))
    return UnitFailure(
        unit=_unit(name),
        result=one_line(str(entry.get("UNIT_RESULT", "")), 40),
        at=int(stamp) / 1e6 if re.fullmatch(r"[0-9]{1,18}", stamp) else None,
        still_failed=not user and name in failed,
        user=user,
    )
