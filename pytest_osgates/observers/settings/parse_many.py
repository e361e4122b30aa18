"""From records to facts, where there are many: accounts, packages, processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.facts import (
    AccountsFact,
    Group,
    Package,
    PackagesFact,
    ProcessesFact,
    ProcessFact,
    TextFact,
    User,
)
from pytest_osgates.checks.settings.packages import MANAGERS
from pytest_osgates.observers.settings.answers import Answers, Blob
from pytest_osgates.observers.settings.parse import NO_ANSWER, exactly, text_of
from pytest_osgates.observers.settings.script import MAX_CONTENT, MAX_TABLE
from pytest_osgates.vm.text import one_line

MAX_ENTRIES = 20_000
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_OF_A_PROCESS = re.compile(r"/proc/([0-9]{1,10})/(?:maps:(.*)|cgroup|environ|cmdline)", re.ASCII)
# proc(5), /proc/pid/maps: address, permissions, offset, device, inode, path.
_MAPPED = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ [0-9]+\s+(/.*)", re.ASCII)


class _Refused(Exception):
    """A table that cannot be believed; the message says why."""


def accounts(answers: Answers) -> AccountsFact:
    """/etc/passwd and /etc/group, and whom else getent(1) names; passwords from what was made of /etc/shadow."""
    try:
        shadow: dict[str, tuple[str, ...]] = {}
        for fields in answers.said.get("shadow", []) if answers.said.get("shadowed") else []:
            if len(fields) == 3:
                # Of two lines for one name, the first is the one that counts (getspnam(3)).
                shadow.setdefault(fields[0], fields[1:])
        users = [_user(fields, shadow) for fields in _lines(answers, "passwd", 7)]
        groups = [_group(fields) for fields in _lines(answers, "group", 4)]
        known = {user.name for user in users}
        users += [
            user.model_copy(update={"nss": True})
            for fields in _lines(answers, "getent-passwd", 7, optional=True)
            if (user := _user(fields, shadow)).name not in known
        ]
        known = {group.name for group in groups}
        groups += [
            group.model_copy(update={"nss": True})
            for fields in _lines(answers, "getent-group", 4, optional=True)
            if (group := _group(fields)).name not in known
        ]
    except _Refused as refusal:
        return AccountsFact(problem=str(refusal))
    return AccountsFact(users=tuple(users), groups=tuple(groups))


def _lines(answers: Answers, tag: str, width: int, *, optional: bool = False) -> list[list[str]]:
    """The lines of a table of passwd(5)'s kind. getent(1) ends with 3 where a database cannot be listed."""
    blob = answers.blob(tag)
    if blob is None or (optional and blob.status == 3):
        if optional:
            return []
        raise _Refused(f"/etc/{tag} is not there")
    if blob.status != 0 or len(blob.data) > MAX_TABLE:
        raise _Refused(f"{tag.replace('-', ' ')} cannot be read, or is too large")
    found = []
    for line in blob.text.split("\n"):
        fields = line.split(":")
        # nsswitch.conf(5): "+" and "-" are for the "compat" service, and name nobody by themselves.
        if not line.strip() or line.startswith(("#", "+", "-")):
            continue
        # A name that is shown otherwise than it is written could pass for another one: "root " is not root.
        if len(fields) != width or not _is_id(fields[2]) or not fields[0] or one_line(fields[0], 256) != fields[0]:
            raise _Refused(f"{tag.replace('-', ' ')} has a line that is none: {fields[0][:60]!a}")
        found.append(fields)
    if len(found) > MAX_ENTRIES:
        raise _Refused(f"{tag} has {len(found)} entries")
    return found


def _is_id(text: str) -> bool:
    """Whether it is a uid or gid (32 bits): some C libraries take a larger one modulo 2**32, which may be 0."""
    return _NUMBER.fullmatch(text) is not None and int(text) < 1 << 32


def _user(fields: list[str], shadow: Mapping[str, tuple[str, ...]]) -> User:
    if not _is_id(fields[3]):
        raise _Refused(f"passwd has a line that is none: {fields[0][:60]!a}")
    kind, last = shadow.get(fields[0], ("unknown", ""))
    if fields[1] != "x":
        # passwd(5): the password itself stands here; only "x" refers to /etc/shadow.
        kind, last = ("none" if not fields[1] else "locked" if fields[1][0] in "*!" else "set"), ""
    return User(
        name=one_line(fields[0], 256),
        uid=int(fields[2]),
        gid=int(fields[3]),
        home=one_line(fields[5], 500),
        shell=one_line(fields[6], 500),
        password=kind,
        must_change=last == "0",
    )


def _group(fields: list[str]) -> Group:
    members = tuple(one_line(name, 256) for name in fields[3].split(",") if name)
    return Group(name=one_line(fields[0], 256), gid=int(fields[2]), members=members)


def packages(answers: Answers) -> dict[str, PackagesFact]:
    """What each package manager lists."""
    readers: dict[str, Callable[[str], Package]] = {"dpkg": _dpkg, "rpm": _rpm, "flatpak": _flatpak}
    return {manager: _list(answers, manager, readers[manager]) for manager in MANAGERS}


def _list(answers: Answers, manager: str, read: Callable[[str], Package]) -> PackagesFact:
    if (manager,) in answers.said.get("nomanager", []):
        return PackagesFact(there=False)
    blob = answers.blob(manager)
    if blob is None:
        return PackagesFact(problem=NO_ANSWER)
    if blob.status != 0:
        return PackagesFact(problem=f"it ended with status {blob.status}")
    lines = [line for line in blob.text.split("\n") if line.strip()]
    if len(lines) > MAX_ENTRIES:
        return PackagesFact(problem=f"it lists {len(lines)} packages")
    try:
        return PackagesFact(packages=tuple(read(line) for line in lines))
    except ValueError:
        return PackagesFact(problem="its list is not what was asked for")


def _dpkg(line: str) -> Package:
    name, version, architecture, status = (one_line(part, 200) for part in line.split("\t"))
    if not name or not status:
        raise ValueError(line)
    return Package(name=name, version=version, architecture=architecture, status=status)


def _rpm(line: str) -> Package:
    name, version, architecture = (one_line(part, 200) for part in line.split("\t"))
    if not name:
        raise ValueError(line)
    return Package(name=name, version=version.removeprefix("0:"), architecture=architecture)


def _flatpak(line: str) -> Package:
    """Application, version (often none), branch, installation."""
    name, version, branch, _ = (one_line(part, 200) for part in line.split("\t"))
    if not name:
        raise ValueError(line)
    return Package(name=name, version=version or branch)


def processes(answers: Answers, questions: Questions, root: str = "") -> ProcessesFact:
    """Every process with an address space of its own, but those of the channel that asks.

    The maps were read twice: what stands in either counts, and who ended in between does not.
    """
    preload = text_of(answers, "preload", MAX_CONTENT)
    libraries = {}
    for library in questions.libraries:
        real = answers.about("library", library)
        if real is None or len(real) != 1 or len(answers.blobs.get(f"mapped:{library}", [])) != 2:
            return ProcessesFact(preload=preload, libraries={}, problem=NO_ANSWER)
        libraries[library] = exactly(real[0])
    own_blob = answers.blob("own")
    if own_blob is None:
        return ProcessesFact(preload=preload, libraries=libraries, problem=NO_ANSWER)
    own = {match[1] for match in _of_processes(own_blob, root)}
    alive = {fields[0] for fields in answers.said.get("alive", [])}
    mapped = {library: _mapped(answers, library, root) for library in libraries}
    found: list[ProcessFact] = []
    counted = gone = len(answers.said.get("gone-process", []))
    left_out = 0
    for pid, readable, name, exe, cgroup in (f for f in answers.said.get("process", []) if len(f) == 5):
        counted += 1
        if not _NUMBER.fullmatch(pid):
            return ProcessesFact(preload=preload, libraries=libraries, problem="a process without a number")
        if pid in own:
            left_out += 1
        elif pid not in alive:
            gone += 1
        else:
            maps = {library: tuple(sorted(paths.get(pid, ()))) for library, paths in mapped.items()}
            found.append(
                ProcessFact(
                    pid=int(pid),
                    name=one_line(name, 64),
                    exe=exactly(exe),
                    cgroup=one_line(cgroup, 1000),
                    maps={library: paths for library, paths in maps.items() if paths},
                    problem="" if readable == "1" else "permission denied",
                )
            )
    problem = f"{len(found)} processes are too many" if len(found) > MAX_ENTRIES else ""
    return ProcessesFact(
        preload=_clean(preload),
        libraries=libraries,
        processes=() if problem else tuple(found),
        own=left_out,
        gone=gone,
        problem=problem,
    )


def _clean(fact: TextFact) -> TextFact:
    if fact.text is None:
        return fact
    return TextFact(text="\n".join(one_line(line, 2000) for line in fact.text.split("\n")))


def _of_processes(blob: Blob, root: str) -> Iterator[re.Match[str]]:
    """grep(1) names the file before what it found in it."""
    for line in blob.lines:
        if line.startswith(root) and (match := _OF_A_PROCESS.fullmatch(line, len(root))):
            yield match


def _mapped(answers: Answers, library: str, root: str) -> dict[str, set[str]]:
    """The paths that each process (by the text of its pid) has mapped, of those that grep(1) found."""
    found: dict[str, set[str]] = {}
    for blob in answers.blobs[f"mapped:{library}"]:
        for match in _of_processes(blob, root):
            entry = _MAPPED.fullmatch(match[2] or "")
            if entry:
                found.setdefault(match[1], set()).add(exactly(entry[1]))
    return found
