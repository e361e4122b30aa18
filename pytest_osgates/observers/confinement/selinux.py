"""Watches an idle machine, then asks its SELinux which domain every networked program would get: for the gate
`selinux`.

Nothing is executed. The kernel computes by itself, from a domain and a file's label, what execve(2) would give
(selinuxfs, ``create``: the same function that execve calls), for the domain of the first process, which starts
services; for a script by the label of the script. With ``access`` it says of each domain whether that is permissive.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pytest_osgates.checks.apparmor_model import Attachment, ConfinementSeen, Mode, StaticScan
from pytest_osgates.checks.apparmor_running import FOREIGN, ProcessSeen, RunningSeen
from pytest_osgates.checks.selinux import SelinuxObservation, SelinuxPolicy
from pytest_osgates.evidence import dump
from pytest_osgates.observers.confinement.observe import Place, Watched, of_nobody, questions, seen_running
from pytest_osgates.observers.confinement.probe import Question
from pytest_osgates.observers.confinement.records import read
from pytest_osgates.progress import Step
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_OUTPUT = 8 << 20
_WHAT = "answer about domains"
_CONTEXT = re.compile(r"[^\s:]{1,100}:[^\s:]{1,100}:([^\s:]{1,100})(?::\S{1,200})?")
# security/selinux/include/security.h: AVD_FLAGS_PERMISSIVE.
_PERMISSIVE = 1
_HEAD = r"""
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
say() { printf '%s\0' "$#" "$@" || exit 71; }
d=@DIRECTORY@
f=/sys/fs/selinux
"""
_FILES = (
    _HEAD
    + r"""
first() { l=; { IFS= read -r l <"$1"; } 2>/dev/null; }
if ! [ -e "$f/enforce" ]; then say none; say end; exit 0; fi
first "$f/enforce"; say enforce "$l"
first /proc/1/attr/current; say first "$l"
for m in /var/lib/selinux/*/active/modules; do
    [ -d "$m" ] && [ -r "$m" ] || continue
    say modules "$m"
    for p in "$m"/*/permissive_*; do [ ! -e "$p" ] || say permissive "${p##*/}"; done
done
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


@dataclass(frozen=True)
class Files:
    """What the guest says of itself and of its files."""

    there: bool = False
    enforcing: bool | None = None
    first: str = ""
    permissive: tuple[str, ...] | None = None
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
    labels = [process.label for process in running.processes if _CONTEXT.fullmatch(process.label)]
    pairs = [(files.first, context) for context in files.contexts.values() if _CONTEXT.fullmatch(context)]
    found = ask_domains(place.shell, [*pairs, *((label, "-") for label in labels)]) if files.there else {}
    place.evidence.write("confinement/domains.json", dump([[*pair, *domain] for pair, domain in found.items()]))
    return SelinuxObservation(
        state=place.state,
        day=datetime.now(UTC).date(),
        scan=scan,
        confinement=_confinement(running, seen, files, found, asked, scan),
        enforcing=files.enforcing,
        permissive=files.permissive,
        domain=domain_of(files.first),
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
    script = _FILES.replace("@DIRECTORY@", shlex.quote(shell.directory))
    done = shell.run(script, timeout=180, max_output=MAX_OUTPUT, shown="labels of files")
    records = read(done.check().stdout, _WHAT)
    if records.said["none"]:
        return Files()
    contexts = records.blobs.get("contexts", b"").decode("utf-8", "surrogateescape").split("\0")
    names = (fields[0].removeprefix("permissive_") for fields in records.said["permissive"] if fields)
    permissive = tuple(sorted({one_line(name, 100) for name in names}))
    return Files(
        there=True,
        enforcing={"1": True, "0": False}.get(records.one("enforce")),
        first=one_line(records.one("first").rstrip("\0"), 400),
        permissive=permissive if records.said["modules"] else None,
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
    wanted = [
        (s, t) for s, t in dict.fromkeys(pairs) if _CONTEXT.fullmatch(s) and (t == "-" or _CONTEXT.fullmatch(t))
    ]
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


def _confinement(
    running: RunningSeen,
    seen: Watched,
    files: Files,
    found: dict[tuple[str, str], Domain],
    asked: tuple[Question, ...],
    scan: StaticScan,
) -> ConfinementSeen:
    labels = [_executed(question, files, found) for question in asked]
    labels += [_running(process, found) for process in running.processes]
    problems = [*running.problems]
    if files.there and not domain_of(files.first):
        problems.append("the first process has no domain: services get theirs by it")
    return ConfinementSeen(
        enabled=files.there,
        attachments=tuple(labels),
        system="SELinux",
        problem="; ".join(problems) if files.there else "",
        ownerless=of_nobody(running, seen, scan),
        looks=len(seen.looks),
        watched_s=seen.seconds,
        recorded=not seen.recorded.problem,
        not_recorded=seen.recorded.problem,
        unnamed=seen.recorded.unnamed,
        method="selinuxfs",
    )


def _executed(question: Question, files: Files, found: dict[tuple[str, str], Domain]) -> Attachment:
    path = question.reads or question.path
    context = files.contexts.get(question.path, "")
    given, permissive = found.get((files.first, context), ("", None))
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
    unit = question.unit if question.reads else ""
    return Attachment(path=path, how="exec", profile=domain, mode=mode, sha256=digest, unit=unit, error=error)


def _running(process: ProcessSeen, found: dict[tuple[str, str], Domain]) -> Attachment:
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
    return Attachment(path=process.exe, how="process", profile=domain, mode=mode, pid=process.pid, error=error)
