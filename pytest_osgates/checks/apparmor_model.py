"""What the gate `apparmor` knows: the networked programs of an image, and what the kernel says of their confinement.

Two observations, made apart: the image's files tell what counts (:class:`StaticScan`), the booted kernel tells what
is confined (:class:`ConfinementSeen`). Neither can stand in for the other.
"""

from __future__ import annotations

from datetime import date as date_type
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pytest_osgates.checks.settings.demand import Lines, Path, Reason
from pytest_osgates.model import Acceptance, Model, Observation, Policy, State


class Tier(StrEnum):
    """What is demanded of a program."""

    A = "A"  # must be confined
    B = "B"  # must be confined, or documented
    C = "C"  # is reported


class Kind(StrEnum):
    """Why a program counts as networked."""

    FILE_CAPABILITY = "file-capability"
    SETUID = "set-uid"
    SOCKET_UNIT = "socket-unit"
    LISTENING_SERVICE = "listening-service"
    SOCKET_SEEN = "socket-seen"
    SOCKET_RECORDED = "socket-recorded"
    IMPORTS = "imports"
    LINKS = "links"
    LINKS_UNLISTED = "links-unlisted"
    LOADS = "loads"
    SYSTEM_CALLS = "system-calls"
    RUNTIME = "runtime"
    MODULES = "modules"
    COMMANDS = "commands"
    FLATPAK = "flatpak"
    UNTOLD = "untold"
    REACHES = "reaches"


# What puts a program into tier A, and what leaves it in C; all else is B.
SEEN = frozenset({Kind.SOCKET_SEEN, Kind.SOCKET_RECORDED})
DEMANDING = SEEN | {Kind.FILE_CAPABILITY, Kind.SETUID, Kind.SOCKET_UNIT, Kind.LISTENING_SERVICE}
REPORTED = frozenset({Kind.REACHES})
# The end of the names of units that a user's own systemd starts.
USERS = " (user)"


def tier_of(kinds: frozenset[Kind]) -> Tier:
    """The tier that evidence of these kinds makes."""
    if kinds & DEMANDING:
        return Tier.A
    return Tier.C if kinds <= REPORTED else Tier.B


class Evidence(Model):
    """One reason why a program counts."""

    kind: Kind
    detail: str


class Networked(Model):
    """A program, script or application, by its path in the image once links of directories are followed.

    ``same``: other paths with the same bytes, hard links and copies alike: AppArmor attaches by path, so each is an
    entry of its own. ``sha256`` is empty for what has no single file. ``package``: MANAGER:NAME; empty: none owns it.
    """

    path: str
    package: str = ""
    evidence: tuple[Evidence, ...] = Field(min_length=1)
    sha256: str = ""
    size: int = 0
    interpreter: str = ""
    same: tuple[str, ...] = ()

    @property
    def tier(self) -> Tier:
        """By its strongest evidence."""
        return tier_of(frozenset(entry.kind for entry in self.evidence))

    @property
    def why(self) -> str:
        """For findings: each kind once, with its first detail."""
        first: dict[Kind, str] = {}
        for entry in self.evidence:
            first.setdefault(entry.kind, entry.detail)
        return "; ".join(f"{kind} {detail}".strip() for kind, detail in first.items())


class Unreadable(Model):
    """A program that could be run, and of which nothing can be told."""

    path: str
    why: str


class UnitSeen(Model):
    """A unit that starts a networked program, for the context that the kernel's label depends on. ``executes``:
    what is executed for that, where it is another program, which reads or loads this one (an interpreter, the
    dynamic linker): the label is that one's."""

    name: str
    program: str
    executes: str = ""
    apparmor_profile: str = ""
    listens: tuple[str, ...] = ()
    private_network: bool = False
    no_new_privileges: bool = False


class StaticScan(Model):
    """All networked programs of an image, found in its files. ``unfollowed``: what units start, and whose program
    cannot be told. The counts say how much was looked at."""

    entries: tuple[Networked, ...]
    unreadable: tuple[Unreadable, ...] = ()
    units: tuple[UnitSeen, ...] = ()
    unfollowed: tuple[str, ...] = ()
    files: int = 0
    elves: int = 0
    scripts: int = 0
    others: int = 0
    libraries: int = 0
    flatpak_files: int = 0


class Mode(StrEnum):
    """The mode of a profile, as the kernel names it in a label; UNCONFINED where there is no profile."""

    ENFORCE = "enforce"
    KILL = "kill"
    COMPLAIN = "complain"
    PROMPT = "prompt"
    UNCONFINED = "unconfined"
    MIXED = "mixed"
    USER = "user"


class Attachment(Model):
    """The label that the kernel gave to one program. ``how``: when it was executed for this, or of a process that was
    there. ``error``: why there is no label. ``profile``: the label without its mode. ``unit``: the unit in whose
    context it was executed; empty: by nobody in particular, unconfined. ``caller``: the domain of who would execute
    it, where that is not the first process but a user (SELinux). ``refused``: the kernel does not execute it.
    ``idle``: of a process that was never seen with a socket."""

    path: str
    how: Literal["exec", "process"]
    profile: str = ""
    mode: Mode = Mode.UNCONFINED
    sha256: str = ""
    pid: int = 0
    unit: str = ""
    caller: str = ""
    refused: bool = False
    idle: bool = False
    error: str = ""


class ProfileSeen(Model):
    """A profile or domain that confines a program, and what it allows that takes its point away: ``every-file``,
    ``every-network``, ``load-policy`` (SELinux), ``unconfined`` (it may become that). ``unknown``: why the kernel
    does not say."""

    name: str
    allows: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def loose(self) -> bool:
        """Whether it keeps nobody from anything."""
        return "unconfined" in self.allows or {"every-file", "every-network"} <= set(self.allows)


class Ownerless(Model):
    """A socket that waits for others, and that no process was seen to hold."""

    protocol: str
    local: str
    namespace: str = ""

    @property
    def name(self) -> str:
        """``udp 0.0.0.0:51820``."""
        return f"{self.protocol} {self.local}"


class ConfinementSeen(Model):
    """What the booted kernel said. ``problem``: why it cannot be believed as a whole. ``looks``, ``watched_s``: how
    often, and over how many seconds of the guest, processes and sockets were listed. ``recorded``: the kernel's own
    record of sockets was kept all the while, so that what came and went between two looks is known as well;
    ``not_recorded``: why it was not; ``lost``: events that the record had no room for.
    ``method``: how programs were kept from running. ``waited_for``: units on whose sockets somebody waits, the
    first process for one."""

    enabled: bool
    attachments: tuple[Attachment, ...]
    system: Literal["AppArmor", "SELinux"] = "AppArmor"
    problem: str = ""
    ownerless: tuple[Ownerless, ...] = ()
    profiles: tuple[ProfileSeen, ...] = ()
    looks: int = 0
    watched_s: float = 0.0
    recorded: bool = False
    not_recorded: str = ""
    lost: int = 0
    unnamed: tuple[str, ...] = ()
    waited_for: tuple[str, ...] = ()
    method: str = ""
    asked_s: int | None = None


class ApparmorObservation(Observation):
    """``confinement`` None: nobody asked a kernel. ``day``: when it was observed."""

    state: State
    day: date_type | None = None
    scan: StaticScan
    confinement: ConfinementSeen | None = None

    @property
    def considered(self) -> int | None:
        return len(self.scan.entries)


def _patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not value.strip("/*?"):
            raise ValueError(f"{value!r} is everything")
    return values


class Documented(Acceptance):
    """``[[gate.apparmor.documented]]``: a program that may run unconfined. Of one path, and of the bytes that the
    reviewer looked at where ``sha256`` is given. Without reason, reviewer and date it counts as none. In a profile,
    ``binaries`` are several paths in one entry."""

    binary: Path
    reviewer: str = ""
    date: date_type | None = None
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @property
    def documented(self) -> bool:
        return bool(self.reason.strip() and self.reviewer.strip() and self.date is not None)


class LeftOut(Model):
    """``[[gate.apparmor.left_out]]``: what cannot run. ``packages`` are names, ``paths`` paths, both with * and ?. Of
    tier A it leaves out what has its own path in ``paths``, and nothing else."""

    packages: Annotated[Lines, AfterValidator(_patterns)] = ()
    paths: Annotated[Lines, AfterValidator(_patterns)] = ()
    reason: Reason

    @model_validator(mode="after")
    def _says_something(self) -> LeftOut:
        if not (self.packages or self.paths):
            raise ValueError("it leaves nothing out: give packages or paths")
        return self


class KernelSocket(Model):
    """``[[gate.apparmor.kernel_socket]]``: a socket that waits for others and is the kernel's own (WireGuard, NFS):
    protocol and local address as they are shown, with * and ?."""

    socket: Annotated[str, Field(min_length=3)]
    reason: Reason


class ApparmorPolicy(Policy):
    """``[gate.apparmor]``. ``review_days``: how long a review is good for; 0: for ever. ``watch_s``: how long an idle
    machine is watched. ``loose_profiles``: what a profile is that allows everything. ``accept_unrecorded``: why the
    looks at the machine are enough where its kernel keeps no record of sockets; empty: they are not."""

    documented: tuple[Documented, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    kernel_socket: tuple[KernelSocket, ...] = ()
    review_days: int = Field(default=0, ge=0)
    watch_s: float = Field(default=60.0, ge=0, le=86400)
    loose_profiles: Literal["remark", "violation"] = "remark"
    accept_unrecorded: str = ""

    @field_validator("documented", mode="before")
    @classmethod
    def _one_each(cls, entries: object) -> object:
        """An entry with ``binaries`` is one for each of them: reviewed together, for one reason."""
        if not isinstance(entries, (list, tuple)):
            return entries
        found: list[object] = []
        for entry in entries:
            if not isinstance(entry, dict) or "binaries" not in entry:
                found.append(entry)
                continue
            binaries = entry["binaries"]
            if "binary" in entry or "sha256" in entry:
                raise ValueError("binaries stands alone: binary and sha256 are for an entry of one program")
            if not isinstance(binaries, list) or not binaries:
                raise ValueError("binaries is a list of paths, at least one")
            shared = {key: value for key, value in entry.items() if key != "binaries"}
            found += [{**shared, "binary": binary} for binary in binaries]
        return found

    @field_validator("documented")
    @classmethod
    def _once(cls, entries: tuple[Documented, ...]) -> tuple[Documented, ...]:
        names = [entry.binary for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is documented twice")
        return entries
