"""Gate `apparmor`: every networked program of the image is confined by the kernel, or documented. The judge.

What counts as networked was found in the files, what is confined was said by a kernel. Where no kernel was asked,
nothing is proven, whatever the files say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pytest_osgates.checks.apparmor_model import (
    DEMANDING,
    SEEN,
    USERS,
    ApparmorObservation,
    ApparmorPolicy,
    Attachment,
    ConfinementSeen,
    Documented,
    Evidence,
    Kind,
    Mode,
    Networked,
    Ownerless,
    StaticScan,
    Tier,
    Unreadable,
)
from pytest_osgates.checks.settings.demand import like, short
from pytest_osgates.model import Control, Finding, Gate, Severity, State

_CONFINED = frozenset({Mode.ENFORCE, Mode.KILL})
_RULES = {Mode.UNCONFINED: "unconfined", Mode.COMPLAIN: "complain-mode"}
_ENABLE = {
    "AppArmor": "lsm=...,apparmor or apparmor=1 security=apparmor on the kernel's command line",
    "SELinux": "lsm=...,selinux or selinux=1 security=selinux on the kernel's command line",
}
_CONTROL = "/osgates-control"
_NAMED = 12


def with_sockets(scan: StaticScan, seen: Mapping[str, str], kind: Kind = Kind.SOCKET_SEEN) -> StaticScan:
    """`scan` with the programs that were seen with sockets: by path, what was seen. They are of tier A. `kind`:
    whether a process was seen that holds them, or only the kernel's record tells of it."""
    entries = {entry.path: entry for entry in scan.entries}
    for path, what in seen.items():
        reason = Evidence(kind=kind, detail=what)
        known = entries.get(path)
        if known is None:
            entries[path] = Networked(path=path, evidence=(reason,))
        else:
            entries[path] = known.model_copy(update={"evidence": (*known.evidence, reason)})
    return scan.model_copy(update={"entries": tuple(entries[path] for path in sorted(entries))})


def judge(seen: ApparmorObservation, policy: ApparmorPolicy) -> list[Finding]:
    """Whether the two observations can be believed, then every program."""
    findings = [*_scanned(seen.scan, policy), *_unfollowed(seen.scan), *_kernel(seen.confinement)]
    used: set[str] = set()
    rows: dict[int, int] = {}
    # Where the kernel confines nobody, that is the one finding.
    enabled = seen.confinement is not None and seen.confinement.enabled
    for entry in seen.scan.entries:
        if entry.tier is Tier.C:
            continue
        # What must be confined is not left out in passing, by a pattern that is about others.
        row = _left_out(entry.path, entry.package, policy, alone=entry.tier is Tier.A)
        # What was seen to run can run, whatever the profile says.
        if row is not None and not _ran(entry, seen):
            rows[row] = rows.get(row, 0) + 1
            findings.append(_accepted("left-out", entry, "what cannot run", policy.left_out[row].reason))
        elif enabled:
            findings += _entry(entry, seen, policy, used)
    if enabled and seen.confinement is not None:
        findings += _watched(seen.confinement, policy)
        findings += _unused(seen, policy, used)
    findings += _idle_rows(policy, rows)
    return findings + _reported(seen.scan)


def _unfollowed(scan: StaticScan) -> Iterator[Finding]:
    if scan.unfollowed:
        yield Finding(
            rule="not-followed",
            subject=f"{len(scan.unfollowed)} commands",
            seen=f"nobody can tell which programs these start: {short('; '.join(scan.unfollowed[:_NAMED]))}",
            wanted="nothing: what they start is judged where it is a program of the image, or seen to run",
            severity=Severity.REMARK,
        )


def _ran(entry: Networked, seen: ApparmorObservation) -> bool:
    """Whether it was seen to run, or somebody to wait on a socket for which it would be started."""
    known = seen.confinement or ConfinementSeen(enabled=False, attachments=())
    process = any(label.how == "process" and label.path == entry.path for label in known.attachments)
    waits = any(unit.program == entry.path and unit.name in known.waited_for for unit in seen.scan.units)
    return process or waits or any(reason.kind in SEEN for reason in entry.evidence)


def _scanned(scan: StaticScan, policy: ApparmorPolicy) -> Iterator[Finding]:
    if not scan.elves:
        yield Finding(
            rule="nothing-scanned",
            subject="image",
            seen=f"no ELF program among {scan.files} files",
            wanted="the programs of the image",
            severity=Severity.UNPROVEN,
        )
    for file in scan.unreadable:
        row = _left_out(file.path, "", policy)
        yield Finding(
            rule="unreadable",
            subject=file.path,
            seen=file.why,
            wanted="a program that can be looked at",
            severity=Severity.UNPROVEN if row is None else Severity.ACCEPTED,
            reason="" if row is None else policy.left_out[row].reason,
        )


def _kernel(confinement: ConfinementSeen | None) -> Iterator[Finding]:
    if confinement is None:
        yield Finding(
            rule="confinement-not-seen",
            subject="kernel",
            seen="no kernel was asked which programs it confines",
            wanted="the label that the booted kernel gives to each networked program",
            severity=Severity.UNPROVEN,
        )
    elif confinement.problem:
        yield Finding(
            rule="confinement-problem",
            subject="kernel",
            seen=confinement.problem,
            wanted="an answer that can be believed",
            severity=Severity.UNPROVEN,
        )
    elif not confinement.enabled:
        yield Finding(
            rule=f"{confinement.system.lower()}-disabled",
            subject="kernel",
            seen=f"{confinement.system} is not enabled in the running kernel",
            wanted="enabled",
            hint=_ENABLE[confinement.system],
        )


def _watched(confinement: ConfinementSeen, policy: ApparmorPolicy) -> Iterator[Finding]:
    """How well the machine was watched, and what the profiles are worth."""
    if confinement.watched_s < policy.watch_s or not confinement.looks:
        yield Finding(
            rule="watched-too-short",
            subject="processes",
            seen=f"{confinement.looks} looks over {confinement.watched_s:g} s of the guest",
            wanted=f"{policy.watch_s:g} s",
            severity=Severity.UNPROVEN,
        )
    elif confinement.lost:
        yield Finding(
            rule="sockets-lost",
            subject="kernel",
            seen=f"its record of who opened sockets had no room for {confinement.lost} events",
            wanted="the kernel's own record of who opened sockets, without a gap",
            severity=Severity.UNPROVEN,
        )
    elif not confinement.recorded:
        reason = policy.accept_unrecorded.strip()
        yield Finding(
            rule="sockets-not-recorded",
            subject="kernel",
            seen=f"{confinement.looks} looks; between them nobody looked: {confinement.not_recorded or 'no record'}",
            wanted="the kernel's own record of who opened sockets",
            hint="where there is no tracefs (lockdown=confidentiality): accept_unrecorded, with the reason",
            severity=Severity.ACCEPTED if reason else Severity.UNPROVEN,
            reason=reason,
        )
    for text in confinement.unnamed:
        yield Finding(
            rule="unknown-program",
            subject="kernel",
            seen=f"somebody opened a socket, and nobody can tell which program: {text}",
            wanted="each socket with its program",
            severity=Severity.UNPROVEN,
        )
    for label in confinement.attachments:
        if label.how == "process" and not label.path and not _confines(label):
            yield Finding(
                rule="unknown-program",
                subject=f"process {label.pid}",
                seen=f"its program cannot be told; {short(label.profile) or 'no profile'} ({label.mode})",
                wanted="each process with its program, or confined",
                severity=Severity.UNPROVEN,
            )
    for socket in confinement.ownerless:
        where = f" in {socket.namespace}" if socket.namespace else ""
        row = next((row for row in policy.kernel_socket if like(socket.name, row.socket)), None)
        yield Finding(
            rule="ownerless-socket",
            subject=socket.name,
            seen=f"it waits for others{where}, and nobody is known to hold it",
            wanted="a process whose label is known",
            hint="if it is the kernel's own (WireGuard, NFS), say so in [[gate.apparmor.kernel_socket]]",
            severity=Severity.UNPROVEN if row is None else Severity.ACCEPTED,
            reason="" if row is None else row.reason,
        )
    violation = policy.loose_profiles == "violation"
    for profile in confinement.profiles:
        if profile.loose:
            yield Finding(
                rule="loose-profile",
                subject=profile.name,
                seen=f"it allows {', '.join(profile.allows)}",
                wanted="a profile that keeps its program from something",
                severity=Severity.VIOLATION if violation else Severity.REMARK,
            )
        elif profile.unknown:
            yield Finding(
                rule="profile-not-told",
                subject=profile.name,
                seen=profile.unknown,
                wanted="what it allows",
                severity=Severity.UNPROVEN if violation else Severity.REMARK,
            )


def _left_out(path: str, package: str, policy: ApparmorPolicy, *, alone: bool = False) -> int | None:
    """The number of the row that leaves it out. `alone`: only one that names this very path does."""
    name = package.partition(":")[2]
    for number, row in enumerate(policy.left_out):
        if path in row.paths:
            return number
        if alone:
            continue
        if any(like(path, pattern) for pattern in row.paths):
            return number
        if name and any(like(name, pattern) for pattern in row.packages):
            return number
    return None


def _accepted(rule: str, entry: Networked, wanted: str, reason: str) -> Finding:
    return Finding(
        rule=rule,
        subject=entry.path,
        seen=f"tier {entry.tier}: {short(entry.why)}",
        wanted=wanted,
        severity=Severity.ACCEPTED,
        reason=reason,
    )


def _entry(entry: Networked, seen: ApparmorObservation, policy: ApparmorPolicy, used: set[str]) -> Iterator[Finding]:
    found = _confinement(entry, seen)
    if found is None:
        return
    finding = found.finding
    document = next((row for row in policy.documented if row.binary == entry.path), None)
    hint = finding.hint
    if document is not None:
        why_not = _why_not(document, entry, seen, policy, softened=found.softened)
        if not why_not:
            used.add(document.binary)
            reason = f"{document.reason} ({document.reviewer}, {document.date})"
            yield _accepted("documented", entry, "confined, or documented", reason)
            return
        hint = f"the profile's entry counts as none: {why_not}"
    elif entry.same and finding.severity is Severity.VIOLATION:
        hint = f"the same bytes as {short(', '.join(entry.same))}; {hint}".rstrip("; ")
    yield finding.model_copy(update={"hint": hint})


def _why_not(
    document: Documented, entry: Networked, seen: ApparmorObservation, policy: ApparmorPolicy, *, softened: bool
) -> str:
    """Why an entry of the profile excuses nothing; empty if it does."""
    if entry.tier is Tier.A and not softened:
        return "what listens, has capabilities of the network or is set-uid must be confined"
    if not document.documented:
        return "it lacks a reason, a reviewer or a date"
    if document.sha256 and document.sha256 != entry.sha256:
        return f"it is about other bytes (sha256 {document.sha256[:12]}..., now {entry.sha256[:12]}...)"
    if document.date is not None and seen.day is not None:
        age = (seen.day - document.date).days
        if age < 0:
            return f"its date, {document.date}, is yet to come"
        if policy.review_days and age > policy.review_days:
            return f"its review is {age} days old, more than {policy.review_days}"
    return ""


@dataclass(frozen=True)
class _Found:
    """What is wrong with the confinement of one program. `softened`: where it must be confined, it
    is; that others may start it without can be documented."""

    finding: Finding
    softened: bool = False


def _confinement(entry: Networked, seen: ApparmorObservation) -> _Found | None:
    """What is wrong with the confinement of one program; None: nothing."""
    confinement = seen.confinement
    labels = [label for label in confinement.attachments if label.path == entry.path] if confinement else []
    where = f"tier {entry.tier}: {short(entry.why)}"
    if any(label.how == "exec" and label.unit for label in labels):
        # A script without x-bit is only started by who reads it.
        labels = [label for label in labels if not label.refused] or labels
    asked = any(
        label.how == "exec" and not label.caller and (not label.unit or _is_read(entry, label.unit, seen.scan))
        for label in labels
    )
    # What was executed is the only word on the next start.
    if not asked:
        return _Found(_unproven("not-asked", entry, f"{where}; the kernel was not asked", "its label"))
    loose = [label for label in labels if not label.error and not _confines(label)]
    # What is known to run unconfined needs no further proof.
    demanding = {reason.kind for reason in entry.evidence} & DEMANDING
    # An interpreter is in tier A for its scripts that hold sockets: those are judged, not each that it runs.
    running = next(
        (label for label in loose if label.how == "process" and not (label.idle and demanding == {Kind.SOCKET_SEEN})),
        None,
    )
    if running is not None:
        started = [label for label in labels if label.how == "exec" and not label.caller]
        # Who starts now is confined; who runs was there first.
        early = all(not label.error and _confines(label) for label in started)
        return _Found(_loose(entry, running, where, "started-before-profile" if early else ""))
    failed = next((label for label in labels if label.error), None)
    if failed is not None:
        context = f" ({failed.unit})" if failed.unit else ""
        hint = "what cannot run is left out with a reason, what may run unconfined is documented"
        unproven = _unproven("no-label", entry, f"{where}; {failed.error}{context}", "its label")
        return _Found(unproven.model_copy(update={"hint": hint}))
    other = next((label for label in labels if label.sha256 and entry.sha256 not in ("", label.sha256)), None)
    if other is not None:
        told = f"the kernel labelled other bytes (sha256 {other.sha256[:12]}...) than are in the image"
        return _Found(_unproven("other-bytes", entry, told, entry.sha256))
    by_unit = next((label for label in loose if label.unit), None)
    if by_unit is not None:
        return _Found(_loose(entry, by_unit, where))
    if not loose:
        return None
    first = next((label for label in loose if not label.caller), loose[0])
    return _Found(_loose(entry, first, where), softened=_confined_where_it_counts(entry, labels, seen.scan))


def _is_read(entry: Networked, unit: str, scan: StaticScan) -> bool:
    """Whether a unit starts it by executing something else, which reads it."""
    return any(one.executes for one in scan.units if one.program == entry.path and one.name == unit)


def _confines(label: Attachment) -> bool:
    return label.mode in _CONFINED and bool(label.profile)


def _confined_where_it_counts(entry: Networked, labels: list[Attachment], scan: StaticScan) -> bool:
    """Whether all that makes it one of tier A is confined: units that give it a profile, and processes with sockets
    that have one (an interpreter has that of its script), though its path alone has none."""
    demanding = {reason.kind for reason in entry.evidence} & DEMANDING
    of_units = demanding & {Kind.SOCKET_UNIT, Kind.LISTENING_SERVICE}
    if not demanding or demanding - of_units - {Kind.SOCKET_SEEN}:
        return False
    units = [unit for unit in scan.units if unit.program == entry.path]
    good = [label for label in labels if not label.error and _confines(label)]
    by_unit = {label.unit for label in good if label.unit}
    # What the first process would start gets this label, though what a user starts does not.
    by_path = any(label.how == "exec" and not label.unit and not label.caller for label in good)
    # One that neither names a profile nor has it read by something else starts it as anybody does.
    told = all(
        ((unit.apparmor_profile or unit.executes) and unit.name in by_unit)
        or (by_path and not unit.executes and not unit.name.endswith(USERS))
        for unit in units
    )
    if of_units and not (units and told):
        return False
    # That no process with sockets is unconfined, the caller knows.
    return Kind.SOCKET_SEEN not in demanding or any(label.how == "process" and not label.idle for label in good)


def _loose(entry: Networked, label: Attachment, where: str, rule: str = "") -> Finding:
    starter = label.unit or label.caller
    by = f", process {label.pid}" if label.how == "process" else f", started by {starter}" if starter else ""
    own = " by its own path," if entry.tier is Tier.A else ""
    return Finding(
        rule=rule or _RULES.get(label.mode, "not-enforced"),
        subject=entry.path,
        seen=f"{where}; {short(label.profile) or 'no profile'} ({label.mode}{by})",
        wanted="confined in enforce mode" if entry.tier is Tier.A else "confined in enforce mode, or documented",
        hint="load the profiles before it starts (After=apparmor.service), or restart it"
        if rule
        else f"write a profile, or switch it to enforce mode; what cannot run is left out{own} with a reason",
    )


def _unproven(rule: str, entry: Networked, seen: str, wanted: str) -> Finding:
    return Finding(rule=rule, subject=entry.path, seen=seen, wanted=wanted, severity=Severity.UNPROVEN)


def _unused(seen: ApparmorObservation, policy: ApparmorPolicy, used: set[str]) -> Iterator[Finding]:
    entries = {entry.path: entry for entry in seen.scan.entries}
    for row in policy.documented:
        entry = entries.get(row.binary)
        counts = entry is not None and entry.tier is not Tier.C
        if row.binary in used or (counts and entry is not None and _confinement(entry, seen) is not None):
            continue
        if entry is None:
            why = "the image has no such networked program"
        elif entry.tier is Tier.C:
            why = "it is only reported: it reaches the network through libraries alone"
        else:
            why = "it is confined"
        yield Finding(
            rule="unused-documentation",
            subject=row.binary,
            seen=why,
            wanted="no entry without need",
            hint="remove it from the profile",
            severity=Severity.REMARK,
        )


def _idle_rows(policy: ApparmorPolicy, rows: Mapping[int, int]) -> Iterator[Finding]:
    for number, row in enumerate(policy.left_out):
        if number not in rows:
            yield Finding(
                rule="unused-left-out",
                subject=short(", ".join((*row.packages, *row.paths))),
                seen="it leaves out nothing",
                wanted="no entry without need",
                severity=Severity.REMARK,
            )


def _reported(scan: StaticScan) -> list[Finding]:
    names = [entry.path for entry in scan.entries if entry.tier is Tier.C]
    if not names:
        return []
    more = ", ..." if len(names) > _NAMED else ""
    return [
        Finding(
            rule="reaches",
            subject=f"{len(names)} programs",
            seen=f"they reach the network only through libraries of others: {', '.join(names[:_NAMED])}{more}",
            wanted="nothing: this decides nothing",
            severity=Severity.REMARK,
        )
    ]


def baseline(seen: ApparmorObservation, policy: ApparmorPolicy, gate: str = "apparmor") -> str:
    """Entries for programs of tier B that are not confined; who reviews them fills in the rest."""
    entries = {entry.path: entry for entry in seen.scan.entries}
    blocks = []
    for finding in judge(seen, policy):
        entry = entries.get(finding.subject)
        if finding.severity is Severity.VIOLATION and entry is not None and entry.tier is Tier.B:
            blocks.append(
                f"# {' '.join(entry.why.split())}\n[[gate.{gate}.documented]]\nbinary = {json.dumps(entry.path)}\n"
                f'sha256 = "{entry.sha256}"\nreason = ""\nreviewer = ""\n'
            )
    return "\n".join(blocks)


def compare(before: ApparmorObservation, now: ApparmorObservation) -> list[str]:
    """Programs that came, went, or are of another tier or label."""
    sides = [_facts(before), _facts(now)]
    lines = []
    for path in dict.fromkeys((*sides[0], *sides[1])):
        then, since = (side.get(path, "not networked") for side in sides)
        if then != since:
            lines.append(f"{path}: {then} -> {since}")
    return lines


def _facts(seen: ApparmorObservation) -> dict[str, str]:
    labels: dict[str, list[str]] = {}
    for label in seen.confinement.attachments if seen.confinement else ():
        labels.setdefault(label.path, []).append(f"{label.profile or 'no profile'} ({label.mode})")
    return {
        entry.path: ", ".join((f"tier {entry.tier}", *sorted(set(labels.get(entry.path, ())))))
        for entry in seen.scan.entries
    }


Sabotage = Callable[[ApparmorObservation], ApparmorObservation]
Seen = TypeVar("Seen", bound=ApparmorObservation)


def controls(seen: ApparmorObservation, policy: ApparmorPolicy) -> tuple[Control[ApparmorObservation], ...]:
    """An unconfined listener, complain mode, a program under another name, and kernels that were not heard."""
    system = "AppArmor" if seen.confinement is None else seen.confinement.system
    original = next((entry for entry in seen.scan.entries if entry.tier is Tier.B), None)
    renamed = (
        _planted(Kind.IMPORTS) if original is None else original.model_copy(update={"path": _CONTROL, "package": ""})
    )
    return (
        Control("an unconfined listener", _with(_planted(Kind.SOCKET_SEEN), Mode.UNCONFINED), "unconfined", _CONTROL),
        Control(
            "a profile in complain mode", _with(_planted(Kind.IMPORTS), Mode.COMPLAIN), "complain-mode", _CONTROL
        ),
        Control("a program under another name", _with(renamed, Mode.UNCONFINED), "unconfined", _CONTROL),
        Control("a profile that waits for a user", _with(renamed, Mode.PROMPT), "not-enforced", _CONTROL),
        Control(
            "a program that nobody asked about",
            _with(_planted(Kind.FILE_CAPABILITY), None),
            "not-asked",
            _CONTROL,
            Severity.UNPROVEN,
        ),
        Control("a process that was there before its profile", _early, "started-before-profile", _CONTROL),
        Control("a unit that takes the profile away", _by_unit, "unconfined", _CONTROL),
        Control("a socket of nobody", _ownerless, "ownerless-socket", "tcp osgates-control", Severity.UNPROVEN),
        Control("nobody watched", _unwatched, "watched-too-short", "processes", Severity.UNPROVEN),
        Control(f"a kernel without {system}", _disabled, f"{system.lower()}-disabled", "kernel"),
        Control("no kernel was asked", _unasked, "confinement-not-seen", "kernel", Severity.UNPROVEN),
        Control("a program that cannot be read", _unreadable, "unreadable", _CONTROL, Severity.UNPROVEN),
    )


def _planted(kind: Kind) -> Networked:
    return Networked(path=_CONTROL, evidence=(Evidence(kind=kind, detail="control"),))


def _with(entry: Networked, mode: Mode | None) -> Sabotage:
    """`entry` is there and has a profile in `mode`; None: nobody asked."""

    def sabotage(seen: ApparmorObservation) -> ApparmorObservation:
        known = seen.confinement or ConfinementSeen(enabled=True, attachments=())
        profile = "" if mode is Mode.UNCONFINED else "control"
        labels = () if mode is None else (Attachment(path=entry.path, how="exec", profile=profile, mode=mode),)
        scan = seen.scan.model_copy(update={"entries": (*seen.scan.entries, entry)})
        confinement = known.model_copy(update={"enabled": True, "attachments": (*known.attachments, *labels)})
        return seen.model_copy(update={"scan": scan, "confinement": confinement})

    return sabotage


def _labelled(seen: ApparmorObservation, *labels: Attachment) -> ApparmorObservation:
    """A listener with these labels beside the one that it gets by its path, which confines."""
    first = Attachment(path=_CONTROL, how="exec", profile="control", mode=Mode.ENFORCE)
    known = seen.confinement or ConfinementSeen(enabled=True, attachments=())
    entries = (*seen.scan.entries, _planted(Kind.LISTENING_SERVICE))
    confinement = known.model_copy(update={"enabled": True, "attachments": (*known.attachments, first, *labels)})
    scan = seen.scan.model_copy(update={"entries": entries})
    return seen.model_copy(update={"scan": scan, "confinement": confinement})


def _early(seen: ApparmorObservation) -> ApparmorObservation:
    return _labelled(seen, Attachment(path=_CONTROL, how="process", pid=1))


def _by_unit(seen: ApparmorObservation) -> ApparmorObservation:
    return _labelled(seen, Attachment(path=_CONTROL, how="exec", unit="control.service"))


def changed(seen: Seen, **changes: object) -> Seen:
    """The observation with another word of the kernel."""
    known = seen.confinement or ConfinementSeen(enabled=True, attachments=())
    return seen.model_copy(update={"confinement": known.model_copy(update=changes)})


def _ownerless(seen: ApparmorObservation) -> ApparmorObservation:
    return changed(seen, enabled=True, ownerless=(Ownerless(protocol="tcp", local="osgates-control"),))


def _unwatched(seen: ApparmorObservation) -> ApparmorObservation:
    return changed(seen, enabled=True, looks=0, watched_s=0.0)


def _disabled(seen: ApparmorObservation) -> ApparmorObservation:
    return changed(seen, enabled=False, problem="")


def _unasked(seen: ApparmorObservation) -> ApparmorObservation:
    return seen.model_copy(update={"confinement": None})


def _unreadable(seen: ApparmorObservation) -> ApparmorObservation:
    files = (*seen.scan.unreadable, Unreadable(path=_CONTROL, why="control"))
    return seen.model_copy(update={"scan": seen.scan.model_copy(update={"unreadable": files})})


GATE = Gate(
    name="apparmor",
    title="every networked program is confined or documented",
    states=(State.LIVE, State.INSTALLED),
    observation=ApparmorObservation,
    policy=ApparmorPolicy,
    judge=judge,
    controls=controls,
    baseline=baseline,
    compare=compare,
)
