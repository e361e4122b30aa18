"""The answer of the probe, taken apart: see probe.py."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_osgates.observers.confinement.records import Records, read
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.text import one_line

MAX_LABEL = 1000
_WHAT = "answer about labels"
_FAILED = {
    "ptrace": "nobody may trace it",
    "stop": "it stopped somewhere else than where it begins",
    "gone": "it ended before it began",
    "ran": "it was not stopped before it began",
    "late": "it did not begin in time",
    "wait": "nobody could wait for it",
    "fork": "no process could be made for it",
    "pipe": "no process could be made for it",
}


@dataclass(frozen=True)
class Answer:
    """Of one program: the label as the kernel says it, or why there is none. ``exe``: the path of what runs, which
    for a script is its interpreter; ``same``: it is the file that lies at the path (None: nobody can tell).
    ``refused``: it cannot be executed by itself."""

    label: str = ""
    how: str = ""
    exe: str = ""
    same: bool | None = None
    error: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Probed:
    """``enforce`` None: the kernel has no SELinux. ``own``, ``first``: labels of who asked, and of the first process.
    ``allowed``: by profile and question, the permissions that the kernel names (None: it names none). ``sums``:
    SHA-256 of the files by path. ``refused``: tracing is forbidden."""

    enabled: bool
    scope: int | None
    enforce: bool | None
    interpreter: str
    method: str = ""
    own: str = ""
    first: str = ""
    refused: bool = False
    problem: str = ""
    answers: tuple[Answer, ...] = ()
    sums: Mapping[str, str] = field(default_factory=dict)
    allowed: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    seconds: int | None = None


def probed(data: bytes, count: int) -> Probed:
    """What the guest says of `count` programs.

    :raise ChannelError: it is cut short, or not what the script writes, or is not of that many programs.
    """
    records = read(data, _WHAT, "done")
    trial = records.said["trial"][0] if records.said["trial"] else ()
    interpreter = records.one("with")
    enforce = records.one("enforce")
    scope = records.one("scope")
    base = Probed(
        enabled=records.one("enabled") == "Y",
        scope=int(scope) if re.fullmatch(r"[0-9]", scope) else None,
        enforce={"1": True, "0": False}.get(enforce) if records.said["enforce"] else None,
        interpreter=one_line(interpreter, 20),
        own=_label_of(records, "own"),
        first=_label_of(records, "first"),
        sums=_sums(records.blobs.get("sums", b"")),
        seconds=_seconds(records),
    )
    if not interpreter:
        return _with(base, problem="nobody can ask for labels there: it has neither perl nor python3 with ctypes")
    # The interpreter's last record: without it, it ended early.
    if len(trial) < 2 or not records.said["finished"]:
        raise ChannelError(f"the guest's {_WHAT} is not what was asked for")
    own = _answer(trial[1:], "", "")
    # A kernel without labels stops programs, too.
    if trial[1] != "label":
        refused = trial[1:3] == ("failed", "ptrace")
        how = "tracing" if refused else one_line(trial[0], 20)
        why = f"no program could be stopped before it begins ({how}: {own.error}"
        return _with(base, refused=refused, problem=f"{why}; kernel.yama.ptrace_scope is {scope or 'not there'})")
    answers: dict[int, Answer] = {}
    for fields in records.said["answer"]:
        if len(fields) < 5 or not re.fullmatch(r"[0-9]{1,6}", fields[0]):
            raise ChannelError(f"the guest's {_WHAT} is not what was asked for")
        answers[int(fields[0])] = _answer(fields[3:], fields[1], fields[2])
    if sorted(answers) != list(range(count)):
        raise ChannelError(f"the guest gives {len(answers)} labels where {count} were asked for")
    found = tuple(answers[number] for number in range(count))
    return _with(base, method=one_line(trial[0], 20), answers=found, allowed=_allowed(records))


def _with(base: Probed, **changes: object) -> Probed:
    fields = {**base.__dict__, **changes}
    return Probed(**fields)


def _label_of(records: Records, tag: str) -> str:
    fields = records.said[tag][0] if records.said[tag] else ()
    return one_line(fields[1].rstrip("\0\n"), MAX_LABEL) if len(fields) == 3 else ""


def _seconds(records: Records) -> int | None:
    texts = [records.one("began"), records.one("ended")]
    if not all(re.fullmatch(r"[0-9]{1,12}", text) for text in texts):
        return None
    return max(0, int(texts[1]) - int(texts[0]))


def _sums(data: bytes) -> dict[str, str]:
    """As sha256sum -z writes them."""
    found = {}
    for line in data.decode("utf-8", "surrogateescape").split("\0"):
        match = re.fullmatch(r"([0-9a-f]{64})  (/.*)", line, re.DOTALL)
        if match is not None:
            found[match[2]] = match[1]
    return found


def _answer(fields: tuple[str, ...], before: str, after: str) -> Answer:
    """``label HOW LABEL ERRNO PLACE EXE``, or ``failed STAGE ERRNO``. `before`, `after`: device and inode of the
    file."""
    if fields[0] == "failed" and len(fields) == 3:
        refused = fields[1] == "exec" and fields[2] in (str(errno.EACCES), str(errno.ENOEXEC))
        return Answer(error=_why(fields[1], fields[2], there=bool(before or after)), refused=refused)
    if fields[0] != "label" or len(fields) != 6:
        raise ChannelError(f"the guest's {_WHAT} is not what was asked for")
    how, label, number, place, exe = fields[1:]
    said = one_line(label.rstrip("\0\n"), MAX_LABEL)
    if not said:
        return Answer(how=how, error=f"the kernel gave no label ({_name(number)})")
    if before != after:
        return Answer(label=said, how=how, error="the file changed while it was looked at")
    same = place == before if place and before else None
    return Answer(label=said, how=how, exe=one_line(exe, 4096), same=same)


def _why(stage: str, number: str, *, there: bool) -> str:
    if stage == "profile":
        return f"the profile that its unit wants cannot be set ({_name(number)}): is it loaded?"
    if stage != "exec":
        said = _FAILED.get(stage, "the guest could not try it")
        return f"{said} ({_name(number)})" if stage in ("ptrace", "fork", "pipe", "wait") else said
    if number == str(errno.ENOENT):
        return "what it runs on (its interpreter) is not there" if there else "there is no such file in the guest"
    if number == str(errno.EACCES):
        return "the kernel does not execute it (EACCES): it has no x-bit, or its file system is mounted noexec"
    return f"the kernel does not execute it ({_name(number)})"


def _name(number: str) -> str:
    if not re.fullmatch(r"[0-9]{1,4}", number):
        return "error unknown"
    return f"{errno.errorcode.get(int(number), number)}, {os.strerror(int(number))}"


def _allowed(records: Records) -> dict[str, dict[str, int | None]]:
    found: dict[str, dict[str, int | None]] = {}
    for fields in records.said["query"]:
        if len(fields) != 4:
            raise ChannelError(f"the guest's {_WHAT} is not what was asked for")
        label, name, said, _ = fields
        match = re.match(r"allow 0x([0-9a-f]{8})\n", said)
        allowed = found.setdefault(one_line(label, MAX_LABEL), {})
        allowed[one_line(name, 20)] = int(match[1], 16) if match is not None else None
    return found
