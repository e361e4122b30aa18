"""From records to facts. Whatever is missing or malformed becomes a fact with a problem, never a fact."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence

from pytest_osgates.checks.settings.capabilities import Capabilities, decode
from pytest_osgates.checks.settings.capabilities import parse as parse_capabilities
from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.facts import (
    CapabilityFact,
    FileFact,
    Mount,
    MountsFact,
    SelinuxFact,
    Stat,
    SysctlFact,
    TextFact,
    UnitFact,
)
from pytest_osgates.checks.settings.units import is_template
from pytest_osgates.observers.settings.answers import Answers, Blob
from pytest_osgates.observers.settings.script import MAX_CONTENT, MAX_TABLE
from pytest_osgates.vm.text import one_line

NO_ANSWER = "the guest did not answer"
MAX_MOUNTS = 5000
_STAT = re.compile(r"([0-9a-f]{1,8}) (\d{1,10}) (\d{1,10}) (\d{1,20})\|([^|\n]*)\|([^|\n]*)\|(.*)")
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_NOT_THERE = re.compile(r"No such file or directory|Not a directory")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
# Also "Failed to connect to bus: No such file or directory" ends like this, and says nothing of the unit.
_NO_UNIT_FILE = re.compile(r"^Failed to get unit file state for \S+: No such file or directory$", re.MULTILINE)
# errno(3): no such attribute; a file system that has none.
_NO_ATTRIBUTE = {"errno 61", "errno 95"}
_UNIT_STATES = re.compile(r"[a-z][a-z-]{1,30}")


def exactly(text: str, limit: int = 1000) -> str:
    """`text` as `one_line` shows it, or, where that would show it as another text, in quotes."""
    shown = one_line(text, limit)
    return shown if shown == text else f"{text[:limit]!a}"


def text_of(answers: Answers, tag: str, most: int) -> TextFact:
    """A file that was asked for with `text` in the script."""
    blob = answers.blob(tag)
    if blob is None:
        there = (tag,) not in answers.said.get("nofile", [])
        return TextFact(problem=NO_ANSWER) if there else TextFact()
    return _text(blob, most)


def _text(blob: Blob, most: int) -> TextFact:
    if blob.status != 0:
        return TextFact(problem="it cannot be read")
    if len(blob.data) > most:
        return TextFact(problem=f"it is larger than {most} bytes")
    return TextFact(text=blob.text)


def sysctls(answers: Answers, paths: Iterable[str]) -> dict[str, SysctlFact]:
    """Each line of grep(1) is ``PATH:VALUE``; names hold no colon. A value of several lines is joined."""
    values: dict[str, list[str]] = {}
    blob = answers.blob("sysctls")
    for line in [] if blob is None else blob.lines:
        path, colon, value = line.partition(":")
        if colon:
            values.setdefault(path, []).append(value)
    found = {}
    for path in paths:
        there = answers.about("sysctl", path)
        if blob is None or there is None:
            found[path] = SysctlFact(problem=NO_ANSWER)
        elif there != ("1",):
            found[path] = SysctlFact()
        elif path not in values:
            found[path] = SysctlFact(problem=f"/proc/sys/{path} cannot be read")
        else:
            found[path] = SysctlFact(value=one_line(" ".join(values[path]), 4000))
    return found


def units(answers: Answers, names: Sequence[str]) -> dict[str, UnitFact]:
    """systemctl(1) answers one block of ``NAME=VALUE`` for each unit, in order; templates are asked one by one."""
    plain = [name for name in names if not is_template(name)]
    blob = answers.blob("units")
    # Each block ends with an empty line, but for the last.
    blocks = [] if blob is None else [block for block in blob.text.split("\n\n") if block.strip()]
    found = {}
    for number, name in enumerate(plain):
        if blob is None or blob.status != 0 or len(blocks) != len(plain):
            found[name] = UnitFact(problem="systemctl show gave no answer for this unit")
        else:
            found[name] = _unit(blocks[number], _links(answers, name))
    for name in names:
        if is_template(name):
            found[name] = _template(answers.about("template", name))
    return found


def _unit(block: str, links: tuple[str, ...]) -> UnitFact:
    values = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
    wanted = [values.get(key, "").split() for key in ("WantedBy", "RequiredBy", "UpheldBy")]
    load = one_line(values.get("LoadState", ""), 40)
    if not load:
        return UnitFact(problem="systemctl show did not say its LoadState")
    return UnitFact(
        id=one_line(values.get("Id", ""), 256),
        load=load,
        active=one_line(values.get("ActiveState", ""), 40),
        file_state=one_line(values.get("UnitFileState", ""), 40),
        fragment=one_line(values.get("FragmentPath", ""), 500),
        wanted_by=tuple(one_line(name, 256) for name in sorted({name for names in wanted for name in names})),
        links=links,
    )


def _links(answers: Answers, name: str) -> tuple[str, ...]:
    """The units in whose directories a link is. The first directory of a name wins, and a link to /dev/null there
    takes back what a later one says (systemd.unit(5), "systemd.unit ... .wants/").
    """
    targets: dict[str, str] = {}
    for unit, directory, target in (fields for fields in answers.said.get("wants", []) if len(fields) == 3):
        if unit == name:
            targets.setdefault(directory, target)
    named = {directory.rpartition(".")[0] for directory, target in targets.items() if target != "/dev/null"}
    return tuple(one_line(unit, 256) for unit in sorted(named))


def _template(said: tuple[str, ...] | None) -> UnitFact:
    """``systemctl is-enabled``: older ones say on standard error, and nothing else, that there is none."""
    if said is None or len(said) != 2:
        return UnitFact(problem=NO_ANSWER)
    state, complaint = said[0].strip(), said[1]
    if state == "not-found" or (not state and _NO_UNIT_FILE.search(complaint)):
        return UnitFact(load="not-found")
    if not _UNIT_STATES.fullmatch(state):
        return UnitFact(problem=f"systemctl is-enabled says {one_line(state + ' ' + complaint, 200)!r}")
    return UnitFact(load="masked" if state.startswith("masked") else "loaded", file_state=state)


def files(answers: Answers, questions: Questions, root: str = "") -> dict[str, FileFact]:
    """Everything about each file."""
    own, target = _stats(answers.blob("lstat"), root), _stats(answers.blob("stat"), root)
    capabilities = _capabilities(answers, [path for path, asked in questions.files.items() if asked.capabilities])
    found = {}
    for path, asked in questions.files.items():
        fact = _file(answers, path, own.get(path), target.get(path), root)
        if fact.own is None or fact.problem:
            found[path] = fact
            continue
        empty = answers.about("empty", path)
        changes: dict[str, object] = {}
        if asked.content:
            changes["content"] = _content(answers, path)
        if asked.capabilities:
            changes["capabilities"] = capabilities.get(path, CapabilityFact(problem=NO_ANSWER))
        if asked.empty and empty in {("0",), ("1",)}:
            changes["empty"] = empty == ("1",)
        found[path] = fact.model_copy(update=changes)
    return found


def _stats(blob: Blob | None, root: str) -> dict[str, Stat]:
    found = {}
    for line in [] if blob is None else blob.lines:
        match = _STAT.fullmatch(line)
        if match is None:
            continue
        mode = int(match[1], 16)
        found[match[7].removeprefix(root)] = Stat(
            type=_TYPES.get(stat.S_IFMT(mode), "unknown"),
            mode=stat.S_IMODE(mode),
            uid=int(match[2]),
            gid=int(match[3]),
            size=int(match[4]),
            owner=exactly(match[5], 100),
            group=exactly(match[6], 100),
        )
    return found


def _file(answers: Answers, path: str, own: Stat | None, target: Stat | None, root: str) -> FileFact:
    if own is None:
        gone = answers.about("gone", path)
        if gone is None:
            return FileFact(problem="stat(1) says nothing of it")
        if not _NOT_THERE.search("".join(gone)):
            return FileFact(problem=f"it cannot be looked at: {one_line(''.join(gone), 200)}")
        return FileFact()
    if own.type != "symlink":
        return FileFact(own=own, target=own, leads_to=path)
    link = answers.about("link", path)
    if link is None or len(link) != 2:
        return FileFact(problem="what it links to cannot be read")
    return FileFact(own=own, target=target, link=exactly(link[0]), leads_to=exactly(link[1].removeprefix(root)))


def _content(answers: Answers, path: str) -> TextFact:
    refused = answers.about("content", path)
    if refused == ("secret",):
        return TextFact(problem="it leads to hashes of passwords, which no gate reads")
    if refused is not None:
        return TextFact(problem="it is no regular file")
    return text_of(answers, f"content:{path}", MAX_CONTENT)


def _capabilities(answers: Answers, paths: list[str]) -> dict[str, CapabilityFact]:
    if answers.said.get("noxattrs"):
        why = "the guest has none of python3, perl, getfattr and getcap to read it with"
        return dict.fromkeys(paths, CapabilityFact(problem=why))
    for tool in ("python3", "perl"):
        blob = answers.blob(f"xattrs:{tool}")
        if blob is None:
            continue
        lines = blob.lines
        if blob.status != 0 or len(lines) != len(paths):
            return dict.fromkeys(paths, CapabilityFact(problem=f"{tool} in the guest did not read it"))
        return {path: _attribute(line, tool) for path, line in zip(paths, lines, strict=True)}
    found = {}
    for path in paths:
        if (said := answers.about("getfattr", path)) is not None and len(said) == 3:
            found[path] = _getfattr(*said)
        elif (said := answers.about("getcap", path)) is not None and len(said) == 3:
            found[path] = _getcap(*said)
    return found


def _attribute(text: str, by: str) -> CapabilityFact:
    """Hexadecimal digits, or ``errno NUMBER``."""
    if text in _NO_ATTRIBUTE:
        return CapabilityFact(text=Capabilities().text, by=by)
    try:
        return CapabilityFact(text=decode(bytes.fromhex(text)).text, by=by)
    except ValueError as error:
        return CapabilityFact(problem=f"{by} in the guest says {one_line(text, 80)!r}: {one_line(str(error), 200)}")


def _getfattr(status: str, out: str, complaint: str) -> CapabilityFact:
    match = re.search(r"^security\.capability=0x([0-9a-f]*)$", out, re.MULTILINE)
    if match is not None:
        return _attribute(match[1], "getfattr")
    if re.search(r"No such attribute|not supported", complaint):
        return CapabilityFact(text=Capabilities().text, by="getfattr")
    return CapabilityFact(problem=f"getfattr in the guest ended with {status}: {one_line(complaint, 200)}")


def _getcap(status: str, out: str, complaint: str) -> CapabilityFact:
    """`out` without the path before it: empty, `` cap_chown=ep``, or of an older getcap(8), `` = cap_chown+ep``."""
    if status != "0" or complaint.strip():
        return CapabilityFact(problem=f"getcap in the guest ended with {status}: {one_line(complaint, 200)}")
    try:
        text = out.strip().removeprefix("= ")
        return CapabilityFact(text=parse_capabilities(text or "none").text, by="getcap")
    except ValueError as error:
        return CapabilityFact(problem=f"getcap in the guest says {one_line(out, 80)!r}: {one_line(str(error), 200)}")


def mounts(answers: Answers) -> MountsFact:
    """/proc/self/mountinfo."""
    blob = answers.blob("mounts")
    if blob is None or blob.status != 0 or len(blob.data) > MAX_TABLE:
        return MountsFact(problem="/proc/self/mountinfo cannot be read, or is too large")
    try:
        found = [mount(line) for line in blob.data.split(b"\n") if line]
    except ValueError as error:
        return MountsFact(problem=f"/proc/self/mountinfo: {one_line(str(error), 200)}")
    if len(found) > MAX_MOUNTS:
        return MountsFact(problem=f"{len(found)} mounts are too many")
    return MountsFact(mounts=tuple(found))


def mount(line: bytes) -> Mount:
    """One line (proc(5)): ID, parent, device, root, mount point, options, optional fields, ``-``, type, source, and
    the superblock's options. Space, tab, newline and backslash are written as octal numbers.

    :raise ValueError: it has another form.
    """
    words = line.split(b" ")
    separator = words.index(b"-", 6) if b"-" in words[6:] else -1
    if separator < 0 or len(words) < separator + 4:
        raise ValueError(f"not a mount: {line[:80]!r}")
    return Mount(
        id=int(words[0]),
        parent=int(words[1]),
        path=_unescaped(words[4]),
        options=_options(words[5]),
        type=_unescaped(words[separator + 1]),
        source=_unescaped(words[separator + 2]),
        super_options=_options(b" ".join(words[separator + 3 :])),
    )


def _unescaped(word: bytes) -> str:
    plain = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), word)
    return plain.decode("utf-8", "replace")


def _options(word: bytes) -> tuple[str, ...]:
    return tuple(_unescaped(option) for option in word.split(b",") if option)


def selinux(answers: Answers) -> SelinuxFact:
    """Without SELinux the kernel has no selinuxfs (security/selinux/selinuxfs.c registers it only where it is on)."""
    filesystems = text_of(answers, "filesystems", MAX_CONTENT)
    if filesystems.text is None:
        return SelinuxFact(problem=f"/proc/filesystems: {filesystems.problem or 'it is not there'}")
    if "selinuxfs" not in filesystems.text.split():
        return SelinuxFact()
    enforce = text_of(answers, "enforce", 16)
    if enforce.text is None:
        return SelinuxFact(known=True, problem=f"/sys/fs/selinux/enforce: {enforce.problem or 'it is not there'}")
    config = text_of(answers, "selinux-config", MAX_CONTENT)
    if config.problem:
        return SelinuxFact(known=True, problem=f"/etc/selinux/config: {config.problem}")
    named = re.findall(r"^\s*SELINUXTYPE\s*=\s*(\S+)", config.text or "", re.MULTILINE)
    return SelinuxFact(
        known=True, enforce=one_line(enforce.text, 20), policy=one_line(named[-1], 100) if named else ""
    )


def lockdown(answers: Answers) -> TextFact:
    """/sys/kernel/security/lockdown; where securityfs is not mounted, nothing is known."""
    fact = text_of(answers, "lockdown", 4096)
    if fact.text is None and not fact.problem and not answers.said.get("securityfs"):
        return TextFact(problem="securityfs is not mounted on /sys/kernel/security")
    return fact if fact.text is None else TextFact(text=one_line(fact.text, 200))
