"""Watches an idle machine, then asks its kernel for the label of every networked program: for the gate `apparmor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pytest_osgates.checks.apparmor import with_sockets
from pytest_osgates.checks.apparmor_model import (
    ApparmorObservation,
    ApparmorPolicy,
    Attachment,
    ConfinementSeen,
    Kind,
    Networked,
    Ownerless,
    ProfileSeen,
    StaticScan,
    Tier,
)
from pytest_osgates.checks.apparmor_running import (
    UNSTEADY,
    RunningSeen,
    attachments,
    awaited,
    held_for_others,
    holding,
    merged,
    read_label,
    socket_programs,
    unowned,
)
from pytest_osgates.evidence import Evidence, dump
from pytest_osgates.model import State
from pytest_osgates.observers import systemd
from pytest_osgates.observers.confinement import observe_running, recorder
from pytest_osgates.observers.confinement.parse_probe import Answer, Probed
from pytest_osgates.observers.confinement.probe import FILES, QUESTIONS, Question, probe
from pytest_osgates.observers.confinement.recorder import Recorded
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.guest.channel import GuestShell

# Between two looks: one costs an emulated guest some seconds.
BETWEEN = 30.0
# Looks on top, while there is something that only one more look can tell.
MORE = 3
_READ, _WRITE = 4, 2
_CHANGE_PROFILE = 0x80000000
FLATPAK = "a Flatpak application or a snap: what starts it decides about its label, not its path"


@dataclass(frozen=True)
class Place:
    """The machine, and where what is seen goes."""

    shell: GuestShell
    state: State
    evidence: Evidence
    progress: ProgressLog


@dataclass(frozen=True)
class Watched:
    """What was seen of an idle machine, over so many seconds of its own."""

    looks: tuple[RunningSeen, ...]
    seconds: float
    recorded: Recorded


def observe(
    place: Place, scan: StaticScan, policy: ApparmorPolicy, resolve: Callable[[str], str]
) -> ApparmorObservation:
    """Watch for `policy.watch_s`, then ask. `resolve`: the path of a program in the image, links followed.

    :raise GuestError: the guest did not answer, or not as asked.
    :raise HostError: the evidence cannot be written.
    """
    seen, running, scan = seen_running(place, scan, policy.watch_s, resolve)
    asked = questions(scan)
    place.progress.step(Step("apparmor", f"asking for the labels of {len(asked)} programs", 0.0))
    answer = probe(place.shell, asked)
    place.evidence.write("confinement/labels.json", dump(_told(asked, answer)))
    place.progress.step(Step("apparmor", f"{len(asked)} labels", float(answer.seconds or 0), done=True))
    found = confinement(running, seen, answer, asked, scan)
    return ApparmorObservation(state=place.state, day=datetime.now(UTC).date(), scan=scan, confinement=found)


def seen_running(
    place: Place, scan: StaticScan, seconds: float, resolve: Callable[[str], str]
) -> tuple[Watched, RunningSeen, StaticScan]:
    """The looks, all of them as one, and `scan` with the programs that were seen with sockets."""
    seen = watch(place, seconds, resolve)
    running = merged(seen.looks)
    place.evidence.write("confinement/looks.json", dump([look.model_dump(mode="json") for look in seen.looks]))
    held = socket_programs(running)
    # Of who was met with a socket, the label is known as well. Of who was met without one it would be an excuse.
    holders = holding(running)
    met = {(process.exe, process.pid) for process in running.processes if process.pid in holders}
    gone = {
        path: what
        for path, what in seen.recorded.programs.items()
        if any((path, process) not in met for process in seen.recorded.processes.get(path, ())) or path not in held
    }
    return seen, running, with_sockets(with_sockets(scan, held), gone, Kind.SOCKET_RECORDED)


def watch(place: Place, seconds: float, resolve: Callable[[str], str]) -> Watched:
    """Look at processes and sockets from time to time, while the kernel keeps its own record.

    :raise GuestError: the guest did not answer, or not as asked.
    """
    shell = place.shell
    recording = recorder.start(shell)
    start = systemd.uptime(shell)
    looks = [observe_running(shell)]
    watched = systemd.uptime(shell) - start
    while watched < seconds:
        place.progress.step(Step("apparmor", "watching the idle machine", watched, seconds))
        pause = min(BETWEEN, seconds - watched) + 0.5
        shell.run(f"sleep {pause:.1f}", timeout=pause + 120, shown="")
        watched = systemd.uptime(shell) - start
        if watched >= seconds or pause > BETWEEN:
            looks.append(observe_running(shell))
    more = MORE
    while more and (len(looks) < 2 or _open_questions(merged(looks))):
        looks.append(observe_running(shell))
        more -= 1
    recorded = recorder.stop(shell, recording, resolve)
    place.progress.step(Step("apparmor", "watched", watched, seconds, done=True))
    return Watched(tuple(looks), round(systemd.uptime(shell) - start, 1), recorded)


def _open_questions(running: RunningSeen) -> bool:
    """What another look may tell: who holds a socket that was opened between two lists, what a process becomes."""
    return bool(unowned(running)) or any(process.error == UNSTEADY for process in running.processes)


def questions(scan: StaticScan) -> tuple[Question, ...]:
    """Every program of tiers A and B by itself; for each unit that names a profile for it; and what a unit executes
    in its place, an interpreter with a script."""
    asked: list[Question] = []
    for entry in scan.entries:
        if entry.tier is Tier.C or _is_flatpak(entry):
            continue
        asked.append(Question(entry.path))
        for unit in scan.units:
            if unit.program == entry.path and unit.executes:
                asked.append(Question(unit.executes, unit.apparmor_profile, unit.name, entry.path))
            elif unit.program == entry.path and unit.apparmor_profile:
                asked.append(Question(entry.path, unit.apparmor_profile, unit.name))
    return tuple(dict.fromkeys(asked))


def _is_flatpak(entry: Networked) -> bool:
    kinds = {reason.kind for reason in entry.evidence}
    return entry.package.startswith(("flatpak:", "snap:")) and kinds <= {Kind.FLATPAK, Kind.UNTOLD}


def confinement(
    running: RunningSeen, seen: Watched, answer: Probed, asked: Sequence[Question], scan: StaticScan
) -> ConfinementSeen:
    """All that the kernel said, in the words of the judge."""
    executed = tuple(
        _attachment(question, told, answer) for question, told in zip(asked, answer.answers, strict=False)
    )
    flatpaks = tuple(
        Attachment(path=entry.path, how="exec", error=FLATPAK)
        for entry in scan.entries
        if entry.tier is not Tier.C and _is_flatpak(entry)
    )
    enabled = running.enabled and answer.enabled
    return ConfinementSeen(
        enabled=enabled,
        attachments=(*executed, *flatpaks, *attachments(running)),
        problem="; ".join(_problems(running, answer)) if enabled else "",
        ownerless=of_nobody(running, seen, scan),
        profiles=profiles(answer),
        looks=len(seen.looks),
        watched_s=seen.seconds,
        recorded=not seen.recorded.problem,
        not_recorded=seen.recorded.problem,
        lost=seen.recorded.lost,
        unnamed=seen.recorded.unnamed,
        waited_for=waited_for(running, scan),
        method=f"{answer.method} by {answer.interpreter}" if answer.method else "",
        asked_s=answer.seconds,
    )


def of_nobody(running: RunningSeen, seen: Watched, scan: StaticScan) -> tuple[Ownerless, ...]:
    """Sockets that wait for others, and of which nobody knows for whom."""
    lasting = {(socket.namespace, socket.inode) for look in seen.looks[-1:] for socket in look.sockets}
    nobody = unowned(running)
    ownerless = {
        (socket.protocol, socket.local, socket.namespace): Ownerless(
            protocol=socket.protocol, local=socket.local, namespace=socket.namespace
        )
        for socket in nobody
        # The record knows who opened what was gone before anybody could be asked for it.
        if (socket.namespace, socket.inode) in lasting or seen.recorded.problem
    }
    for socket in held_for_others(running):
        if socket.local.rpartition(":")[2] not in _ports(scan):
            # No unit in the image's files says for whom.
            place = (socket.protocol, socket.local, socket.namespace)
            ownerless[place] = Ownerless(protocol=place[0], local=place[1], namespace=place[2])
    return tuple(ownerless.values())


def waited_for(running: RunningSeen, scan: StaticScan) -> tuple[str, ...]:
    """Units that would be handed a socket on whose port somebody waits: what they start can run any time."""
    ports = awaited(running)
    listening = [unit for unit in scan.units if ports & {text.rpartition(":")[2] for text in unit.listens}]
    return tuple(dict.fromkeys(unit.name for unit in listening))


def _ports(scan: StaticScan) -> set[str]:
    """Ports on which socket units let the first process listen."""
    return {address.rpartition(":")[2] for unit in scan.units for address in unit.listens}


def _problems(running: RunningSeen, answer: Probed) -> Iterator[str]:
    yield from running.problems
    if answer.problem:
        yield answer.problem
        return
    if answer.own.strip() != "unconfined":
        yield f"who asked was confined itself ({answer.own or 'no label'}), and gets other labels than others do"
    if answer.first.strip() != "unconfined":
        yield f"the first process is confined ({answer.first or 'no label'}): units get their labels by its rules"


def _attachment(question: Question, told: Answer, answer: Probed) -> Attachment:
    profile, mode = read_label(told.label)
    error = told.error
    path = question.reads or question.path
    digest = answer.sums.get(path, "")
    if not error and told.how != "apparmor" and ":" in told.label:
        error = "its label is not AppArmor's"
    if not error and not digest:
        error = "nobody can tell the bytes that were executed: sha256sum(1) is missing, or cannot read them"
    return Attachment(
        path=path,
        how="exec",
        profile=profile,
        mode=mode,
        sha256=digest,
        unit=question.unit,
        refused=told.refused,
        error=error,
    )


def profiles(answer: Probed) -> tuple[ProfileSeen, ...]:
    """What the profiles allow, as far as the kernel was asked."""
    return tuple(_profile(name, said) for name, said in sorted(answer.allowed.items()))


def _profile(name: str, said: dict[str, int | None] | object) -> ProfileSeen:
    told = dict(said) if isinstance(said, dict) else {}
    values = {question: told.get(question) for question in QUESTIONS}
    if any(value is None for value in values.values()):
        missing = ", ".join(question for question, value in values.items() if value is None)
        return ProfileSeen(name=name, unknown=f"the kernel does not say what it allows ({missing})")
    allowed = {question: value for question, value in values.items() if value is not None}
    allows = []
    if all(allowed[f"file{number}"] & (_READ | _WRITE) == _READ | _WRITE for number in range(len(FILES))):
        allows.append("every-file")
    if allowed["net"] and allowed["net9"]:
        allows.append("every-network")
    if allowed["change"] & _CHANGE_PROFILE:
        allows.append("unconfined")
    return ProfileSeen(name=name, allows=tuple(allows))


def _told(asked: Sequence[Question], answer: Probed) -> dict[str, object]:
    """For the evidence: what was asked, and the very words of the answer."""
    return {
        "interpreter": answer.interpreter,
        "method": answer.method,
        "own": answer.own,
        "first": answer.first,
        "ptrace_scope": answer.scope,
        "seconds": answer.seconds,
        "problem": answer.problem,
        "allowed": {name: dict(said) for name, said in answer.allowed.items()},
        "labels": [
            {**question.__dict__, **told.__dict__} for question, told in zip(asked, answer.answers, strict=False)
        ],
    }
