"""Watches an idle machine, then asks its SELinux which domain every networked program would get: for the gate
`selinux`.

Nothing is executed. The kernel computes by itself, from a domain and a file's label, what execve(2) would give
(selinuxfs, ``create``: the same function that execve calls), for the domain of the first process, which starts
services, and for that of a user's shell; for a script by the label of the script. ``create`` does not know of
no_new_privs, with which execve asks the policy once more (security/selinux/hooks.c, check_nnp_nosuid), and without
its consent keeps the domain. With ``access`` the kernel says of each domain whether it is permissive, and whether it
may do what only unconfined domains may (data/selinux.toml). Which types are permissive stands in the loaded policy,
by numbers; the store in the files only lends names, each of which the kernel is asked for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pytest_osgates import data
from pytest_osgates.checks.apparmor_model import Attachment, ConfinementSeen, Mode, ProfileSeen, StaticScan, Tier
from pytest_osgates.checks.apparmor_running import FOREIGN, ProcessSeen, RunningSeen, holding
from pytest_osgates.checks.selinux import EVERY_FILE, SelinuxObservation, SelinuxPolicy
from pytest_osgates.evidence import dump
from pytest_osgates.observers.confinement.observe import (
    Place,
    Watched,
    of_nobody,
    questions,
    seen_running,
    waited_for,
)
from pytest_osgates.observers.confinement.policy import HEAD, permissive_types
from pytest_osgates.observers.confinement.probe import Question
from pytest_osgates.observers.confinement.records import read
from pytest_osgates.progress import Step
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_OUTPUT = 8 << 20
_WHAT = "answer about domains"
_CONTEXT = re.compile(r"[^\s:]{1,100}:[^\s:]{1,100}:([^\s:]{1,100})(?::\S{1,200})?")
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,100}")
MAX_NAMED = 500
# security/selinux/include/security.h: AVD_FLAGS_PERMISSIVE.
_PERMISSIVE = 1
# check_nnp_nosuid(): asked for where no_new_privs is set, if the policy has that capability.
_NNP = ("process2", "nnp_transition")
_HEAD = r"""
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
say() { printf '%s\0' "$#" "$@" || exit 71; }
d=@DIRECTORY@
f=/sys/fs/selinux
first() { l=; { IFS= read -r l <"$1"; } 2>/dev/null; }
"""
_FILES = (
    _HEAD
    + r"""
if ! [ -e "$f/enforce" ]; then say none; say end; exit 0; fi
first "$f/enforce"; say enforce "$l"
first /proc/1/attr/current; say first "$l"
for m in /var/lib/selinux/*/active/modules; do
    [ -d "$m" ] && [ -r "$m" ] || continue
    for p in "$m"/*/permissive_*; do [ ! -e "$p" ] || say permissive "${p##*/}"; done
done
first "$f/policy_capabilities/nnp_nosuid_transition"; say nnp "$l"
head -c @HEAD@ "$f/policy" >"$d/o" 2>/dev/null
n=$(wc -c <"$d/o") || exit 72; say blob policy "$((n))"; cat "$d/o" || exit 73
xargs -0 -r stat --printf '%C\0%n\0' -- <"$d/files" >"$d/o" 2>/dev/null
n=$(wc -c <"$d/o") || exit 72; say blob contexts "$((n))"; cat "$d/o" || exit 73
xargs -0 -r sha256sum -z -- <"$d/files" >"$d/o" 2>/dev/null
n=$(wc -c <"$d/o") || exit 72; say blob sums "$((n))"; cat "$d/o" || exit 73
rm -f "$d/o"
say end
"""
)
# A file of selinuxfs answers whoever asked it through the same descriptor. A line of the list: whose domain, and the
# label of a file, or - for the domain itself.
_DOMAINS = (
    _HEAD
    + r"""
IFS= read -r c <"$f/class/process/index" || exit 74
while read -r s t; do
    l=$s
    if [ "$t" != - ]; then
        l=
        exec 3<>"$f/create" || exit 75
        printf '%s %s %s' "$s" "$t" "$c" >&3 2>/dev/null && IFS= read -r l <&3
        exec 3>&-
    fi
    a=
    if [ -n "$l" ]; then
        exec 3<>"$f/access" || exit 75
        printf '%s %s %s' "$l" "$l" "$c" >&3 2>/dev/null && IFS= read -r a <&3
        exec 3>&-
    fi
    say domain "$s" "$t" "$l" "$a"
done <"$d/domains"
say end
"""
)
# A line of the list: whose domain, about which context, class and permission.
_MARKS = (
    _HEAD
    + r"""
while read -r s t c p; do
    a=
    first "$f/class/$c/perms/$p"; b=$l
    first "$f/class/$c/index"
    if [ -n "$b" ] && [ -n "$l" ]; then
        exec 3<>"$f/access" || exit 75
        printf '%s %s %s' "$s" "$t" "$l" >&3 2>/dev/null && IFS= read -r a <&3
        exec 3>&-
    fi
    say may "$s" "$t" "$c" "$p" "$b" "$a"
done <"$d/marks"
say end
"""
)


@dataclass(frozen=True)
class Files:
    """What the guest says of itself and of its files. ``named``: domains that some store calls permissive;
    ``permissive``: types that are, by the kernel's numbers; None: it does not say. ``nnp``: the policy can consent to
    another domain where no_new_privs is set."""

    there: bool = False
    enforcing: bool | None = None
    first: str = ""
    named: tuple[str, ...] = ()
    permissive: frozenset[int] | None = None
    nnp: bool = False
    contexts: dict[str, str] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)


# The context that is given, and whether its domain is permissive; None: the kernel does not say.
Domain = tuple[str, bool | None]


def observe(
    place: Place, scan: StaticScan, policy: SelinuxPolicy, resolve: Callable[[str], str]
) -> SelinuxObservation:
    """Watch for `policy.watch_s`, then ask. `resolve`: the path of a program in the image, links followed.

    :raise GuestError: the guest did not answer, or not as asked.
    :raise HostError: the evidence cannot be written.
    """
    seen, running, scan = seen_running(place, scan, policy.watch_s, resolve)
    asked = questions(scan)
    place.progress.step(Step("selinux", f"asking for the domains of {len(asked)} programs", 0.0))
    paths = (path for question in asked for path in (question.path, question.reads) if path)
    files = ask_files(place.shell, tuple(dict.fromkeys(paths)))
    # A name that the profile has is as good as the store's: the kernel is asked for it, too.
    names = sorted({*files.named, *(entry.domain for entry in policy.permissive)})
    files = replace(files, named=tuple(names))
    found = _Asked(place.shell, files)
    if files.there:
        counted = {entry.path for entry in scan.entries if entry.tier is not Tier.C}
        found.ask(
            [process.label for process in running.processes],
            [process.label for process in running.processes if process.exe in counted],
        )
    told = _confinement(running, seen, found, asked, scan)
    place.evidence.write("confinement/domains.json", dump(found.evidence()))
    return SelinuxObservation(
        state=place.state,
        day=datetime.now(UTC).date(),
        scan=scan,
        confinement=told,
        enforcing=files.enforcing,
        permissive=(permissive := found.permissive()),
        nameless=None if files.permissive is None else max(0, len(files.permissive) - len(permissive)),
        domain=domain_of(files.first),
        caller=domain_of(found.caller),
    )


def domain_of(context: str) -> str:
    """``system_u:system_r:init_t:s0``: init_t; empty: it is no context."""
    match = _CONTEXT.fullmatch(context)
    return match[1] if match is not None else ""


def ask_files(shell: GuestShell, paths: Iterable[str]) -> Files:
    """Mode, first process, and the labels of files.

    :raise GuestError: the guest did not answer, or not as asked.
    """
    listed = b"".join(path.replace("\0", "").encode("utf-8", "surrogateescape") + b"\0" for path in paths)
    shell.write_file(f"{shell.directory}/files", listed)
    script = _FILES.replace("@DIRECTORY@", shlex.quote(shell.directory)).replace("@HEAD@", str(HEAD))
    done = shell.run(script, timeout=180, max_output=MAX_OUTPUT, shown="labels of files")
    records = read(done.check().stdout, _WHAT)
    if records.said["none"]:
        return Files()
    contexts = records.blobs.get("contexts", b"").decode("utf-8", "surrogateescape").split("\0")
    names = (fields[0].removeprefix("permissive_") for fields in records.said["permissive"] if fields)
    return Files(
        there=True,
        enforcing={"1": True, "0": False}.get(records.one("enforce")),
        first=one_line(records.one("first").rstrip("\0"), 400),
        named=tuple(sorted({name for name in names if _TYPE.fullmatch(name)}))[:MAX_NAMED],
        permissive=permissive_types(records.blobs.get("policy", b"")),
        nnp=records.one("nnp") == "1",
        contexts={path: one_line(text, 400) for text, path in zip(contexts[0::2], contexts[1::2], strict=False)},
        sums=dict(_sums(records.blobs.get("sums", b""))),
    )


def _sums(data: bytes) -> Iterator[tuple[str, str]]:
    for line in data.decode("utf-8", "surrogateescape").split("\0"):
        match = re.fullmatch(r"([0-9a-f]{64})  (/.*)", line, re.DOTALL)
        if match is not None:
            yield match[2], match[1]


def ask_domains(shell: GuestShell, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Domain]:
    """For each pair of a domain and a file's label the domain that execve(2) gives; for ``-`` that domain itself.

    :raise GuestError: the guest did not answer, or not as asked.
    """
    wanted = {(s, t): None for s, t in pairs if _CONTEXT.fullmatch(s) and (t == "-" or _CONTEXT.fullmatch(t))}
    text = "".join(f"{source} {target}\n" for source, target in wanted)
    shell.write_file(f"{shell.directory}/domains", text.encode("utf-8", "surrogateescape"))
    script = _DOMAINS.replace("@DIRECTORY@", shlex.quote(shell.directory))
    done = shell.run(script, timeout=180, max_output=MAX_OUTPUT, shown="domains of programs")
    found: dict[tuple[str, str], Domain] = {}
    for fields in read(done.check().stdout, _WHAT).said["domain"]:
        if len(fields) == 4 and (fields[0], fields[1]) in wanted:
            words = fields[3].rstrip("\0").split()
            flags = words[5] if len(words) == 6 and re.fullmatch(r"[0-9a-f]{1,8}", words[5]) else ""
            permissive = bool(int(flags, 16) & _PERMISSIVE) if flags else None
            found[fields[0], fields[1]] = one_line(fields[2].rstrip("\0"), 400), permissive
    return found


def ask_marks(
    shell: GuestShell, wanted: Iterable[tuple[str, str, str, str]]
) -> dict[tuple[str, str, str, str], bool | None]:
    """For each domain, context, class and permission whether the policy allows it; None: it does not say.

    :raise GuestError: the guest did not answer, or not as asked.
    """
    asked = {row: None for row in wanted if _CONTEXT.fullmatch(row[0]) and _CONTEXT.fullmatch(row[1])}
    text = "".join(f"{' '.join(row)}\n" for row in asked)
    shell.write_file(f"{shell.directory}/marks", text.encode("utf-8", "surrogateescape"))
    script = _MARKS.replace("@DIRECTORY@", shlex.quote(shell.directory))
    done = shell.run(script, timeout=180, max_output=MAX_OUTPUT, shown="what domains may")
    found: dict[tuple[str, str, str, str], bool | None] = dict(asked)
    for fields in read(done.check().stdout, _WHAT).said["may"]:
        if len(fields) != 6 or fields[:4] not in asked:
            continue
        bit, words = fields[4], fields[5].rstrip("\0").split()
        named = re.fullmatch(r"[0-9]{1,2}", bit) is not None and 1 <= int(bit) <= 32
        if named and len(words) == 6 and re.fullmatch(r"[0-9a-f]{1,8}", words[0]):
            source, target, kind, permission = fields[:4]
            found[source, target, kind, permission] = bool(int(words[0], 16) >> (int(bit) - 1) & 1)
    return found


def retyped(context: str, domain: str) -> str:
    """`context` with another type, and with the lowest level that its own has; empty: it is no context."""
    match = _CONTEXT.fullmatch(context)
    if match is None or not _TYPE.fullmatch(domain):
        return ""
    user, role, _, *level = context.split(":", 3)
    return ":".join((user, role, domain, *(text.split("-")[0] for text in level)))


@dataclass
class _Asked:
    """What the kernel said of domains, and who else was asked for. ``caller``: the context of a user's shell."""

    shell: GuestShell
    files: Files
    domains: dict[tuple[str, str], Domain] = field(default_factory=dict)
    may: dict[tuple[str, str, str, str], bool | None] = field(default_factory=dict)
    caller: str = ""

    def ask(self, running: list[str], counted: list[str]) -> None:
        """All that there is to ask; `running`: contexts of processes; `counted`: of those of networked programs."""
        first, files = self.files.first, self.files
        level = retyped(first, "x").split(":")[3:]
        callers = [":".join((text, *level)) for row in data.load("selinux")["caller"] for text in row["contexts"]]
        contexts = dict.fromkeys(text for text in files.contexts.values() if _CONTEXT.fullmatch(text))
        known = ask_domains(
            self.shell,
            [*((text, "-") for text in (*callers, *running)), *self._named(), *((first, t) for t in contexts)],
        )
        self.domains.update(known)
        self.caller = next((text for text in callers if known.get((text, "-"), ("", None))[1] is not None), "")
        if self.caller:
            self.domains.update(ask_domains(self.shell, [(self.caller, text) for text in contexts]))
        given = [context for (_, target), (context, _) in self.domains.items() if target != "-"]
        domains = dict.fromkeys((*given, *counted))
        targets = _marks(next(iter(contexts), ""), self.caller or first)
        self.may = ask_marks(
            self.shell,
            [
                *((domain, *target) for domain in domains for target in targets.values()),
                *((first, domain, *_NNP) for domain in given),
            ],
        )

    def _named(self) -> list[tuple[str, str]]:
        return [(retyped(self.files.first, name), "-") for name in self.files.named]

    def permissive(self) -> tuple[str, ...]:
        """The names of those of which the kernel says so."""
        return tuple(sorted({domain_of(context) for context, permissive in self.domains.values() if permissive}))

    def alone(self, context: str) -> Domain:
        """What `context` becomes for who has no_new_privs set and was the first process before."""
        first = self.files.first
        told = self.domains.get((first, context), ("", None))
        # Where nothing changes, nobody is asked.
        if not domain_of(told[0]) or domain_of(told[0]) == domain_of(first):
            return told
        return told if self.files.nnp and self.may.get((first, told[0], *_NNP)) else (first, told[1])

    def profiles(self) -> tuple[ProfileSeen, ...]:
        """What each domain may."""
        rows: dict[str, dict[str, list[bool | None]]] = {}
        groups = {
            (row["target"], row["class"], row["permission"]): row["group"] for row in data.load("selinux")["mark"]
        }
        for (source, target, kind, permission), answer in self.may.items():
            group = groups.get((domain_of(target), kind, permission))
            if group is not None:
                rows.setdefault(domain_of(source), {}).setdefault(group, []).append(answer)
        return tuple(_profile(name, said) for name, said in sorted(rows.items()) if name)

    def evidence(self) -> object:
        """The very words."""
        return {
            "domains": [[*pair, *domain] for pair, domain in self.domains.items()],
            "may": [[*row, answer] for row, answer in self.may.items()],
        }


def _marks(file: str, process: str) -> dict[str, tuple[str, str, str]]:
    """What domains are asked for, in contexts that look like those of this machine."""
    found = {}
    for row in data.load("selinux")["mark"]:
        context = retyped(process if row["class"] == "process" else file, row["target"])
        if context:
            found[f"{row['group']} {row['target']}"] = (context, row["class"], row["permission"])
    return found


def _profile(name: str, said: dict[str, list[bool | None]]) -> ProfileSeen:
    # A policy need not have all of these types.
    answers = [answer for answer in said.get("files", []) if answer is not None]
    allows = [group for group in ("load-policy", "unconfined") if any(said.get(group, []))]
    if not answers:
        return ProfileSeen(
            name=name, allows=tuple(allows), unknown="the kernel does not say which files it may write"
        )
    return ProfileSeen(name=name, allows=((EVERY_FILE,) if all(answers) else ()) + tuple(allows))


def _confinement(
    running: RunningSeen, seen: Watched, found: _Asked, asked: tuple[Question, ...], scan: StaticScan
) -> ConfinementSeen:
    files = found.files
    labels = [_executed(question, found, scan) for question in asked]
    labels += _by_others(asked, found, scan)
    holders = holding(running)
    labels += [_running(process, found.domains, idle=process.pid not in holders) for process in running.processes]
    problems = [*running.problems]
    if files.there and not domain_of(files.first):
        problems.append("the first process has no domain: services get theirs by it")
    return ConfinementSeen(
        enabled=files.there,
        attachments=tuple(labels),
        system="SELinux",
        problem="; ".join(problems) if files.there else "",
        ownerless=of_nobody(running, seen, scan),
        profiles=found.profiles(),
        looks=len(seen.looks),
        watched_s=seen.seconds,
        recorded=not seen.recorded.problem,
        not_recorded=seen.recorded.problem,
        lost=seen.recorded.lost,
        unnamed=seen.recorded.unnamed,
        waited_for=waited_for(running, scan),
        method="selinuxfs",
    )


def _executed(question: Question, found: _Asked, scan: StaticScan) -> Attachment:
    """What the first process would start."""
    path = question.reads or question.path
    alone = any(unit.no_new_privileges for unit in scan.units if unit.name == question.unit and unit.program == path)
    context = found.files.contexts.get(question.path, "")
    told = found.alone(context) if alone else found.domains.get((found.files.first, context), ("", None))
    return _attachment(question, told, found.files, unit=question.unit if question.reads else "")


def _by_others(asked: tuple[Question, ...], found: _Asked, scan: StaticScan) -> Iterator[Attachment]:
    """What a user would start, and what units start that set no_new_privs."""
    alone = {(unit.program, unit.name) for unit in scan.units if unit.no_new_privileges and not unit.executes}
    for question in asked:
        context = found.files.contexts.get(question.path, "")
        if question.unit or not domain_of(context):
            continue
        if found.caller:
            told = found.domains.get((found.caller, context), ("", None))
            yield _attachment(question, told, found.files, caller=domain_of(found.caller))
        for path, unit in sorted(alone):
            if path == question.path:
                yield _attachment(question, found.alone(context), found.files, unit=unit)


def _attachment(question: Question, told: Domain, files: Files, *, unit: str = "", caller: str = "") -> Attachment:
    path = question.reads or question.path
    context = files.contexts.get(question.path, "")
    given, permissive = told
    domain, digest = domain_of(given), files.sums.get(path, "")
    error = ""
    if not domain_of(context):
        error = "its file has no label, or is not there"
    elif not domain:
        error = f"the kernel does not say which domain {domain_of(context)} leads to"
    elif permissive is None:
        error = f"the kernel does not say whether {domain} is permissive"
    elif not digest:
        error = "nobody can tell the bytes that would be executed: sha256sum(1) is missing, or cannot read them"
    mode = Mode.COMPLAIN if permissive else Mode.ENFORCE
    return Attachment(
        path=path, how="exec", profile=domain, mode=mode, sha256=digest, unit=unit, caller=caller, error=error
    )


def _running(process: ProcessSeen, found: dict[tuple[str, str], Domain], *, idle: bool) -> Attachment:
    domain = domain_of(process.label)
    _, permissive = found.get((process.label, "-"), ("", None))
    error = "" if process.error == FOREIGN else process.error
    if process.deleted and not error:
        error = f"process {process.pid} runs a program that is not in the image any more"
    elif not domain and not error:
        error = "its label is not SELinux's"
    elif permissive is None and not error:
        error = f"the kernel does not say whether {domain} is permissive"
    mode = Mode.COMPLAIN if permissive else Mode.ENFORCE
    return Attachment(
        path=process.exe, how="process", profile=domain, mode=mode, pid=process.pid, idle=idle, error=error
    )
