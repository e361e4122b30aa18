"""Gate `selinux`: SELinux enforces, and every networked program gets a domain that confines it, or is documented.

Judged by the rules of the gate `apparmor`; what is the label there, is the domain here. A domain that the kernel
calls permissive is what a profile in complain mode is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated

from pydantic import Field

from pytest_osgates import data
from pytest_osgates.checks import apparmor
from pytest_osgates.checks.apparmor_model import (
    ApparmorObservation,
    ApparmorPolicy,
    Attachment,
    ConfinementSeen,
    Evidence,
    Kind,
    Mode,
    Networked,
)
from pytest_osgates.checks.boot import NO_REASON
from pytest_osgates.model import Acceptance, Control, Finding, Gate, Severity, State

EVERY_FILE = "every-file"
_CONTROL = "/osgates-control-domain"


@cache
def unconfined() -> frozenset[str]:
    """Domains that confine nobody: data/selinux.toml."""
    return frozenset(name for row in data.load("selinux")["unconfined"] for name in row["names"])


class SelinuxObservation(ApparmorObservation):
    """``enforcing`` None: nobody could tell. ``permissive``: domains that the loaded policy makes so, whether
    anything runs in them or not, as far as their names are known; ``nameless``: how many more there are; None: the
    kernel does not say. ``domain``: the first process's. ``caller``: that of users' shells, for whose starts the
    kernel was asked as well; empty: the policy has none of those that are known."""

    enforcing: bool | None = None
    permissive: tuple[str, ...] = ()
    nameless: int | None = None
    domain: str = ""
    caller: str = ""


class PermissiveDomain(Acceptance):
    """``[[gate.selinux.permissive]]``: a domain that may be permissive. What runs in it is not confined for that."""

    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


class SelinuxPolicy(ApparmorPolicy):
    """``[gate.selinux]``. ``unconfined``: more domains that confine nobody, beside those that are known.
    ``permissive``: domains that may be permissive, each with a reason."""

    unconfined: tuple[str, ...] = ()
    permissive: tuple[PermissiveDomain, ...] = ()


def judge(seen: SelinuxObservation, policy: SelinuxPolicy) -> list[Finding]:
    """Whether it enforces at all, then every program."""
    return [*_mode(seen), *_domains(seen, policy), *_untold(seen), *apparmor.judge(_told(seen, policy), policy)]


def _told(seen: SelinuxObservation, policy: SelinuxPolicy) -> SelinuxObservation:
    """What has a domain that confines nobody is unconfined, whatever its mode: by its name, or by what it may."""
    if seen.confinement is None:
        return seen
    loose = {*unconfined(), *policy.unconfined}
    loose.update(profile.name for profile in seen.confinement.profiles if EVERY_FILE in profile.allows)
    labels = tuple(
        label.model_copy(update={"mode": Mode.UNCONFINED}) if label.profile in loose else label
        for label in seen.confinement.attachments
    )
    # What is not told has a finding of its own here.
    profiles = tuple(profile for profile in seen.confinement.profiles if not profile.unknown)
    changes = {"attachments": labels, "profiles": profiles}
    return seen.model_copy(update={"confinement": seen.confinement.model_copy(update=changes)})


def _untold(seen: SelinuxObservation) -> Iterator[Finding]:
    """Domains of which nobody knows what they may."""
    confinement = seen.confinement
    if confinement is None or not confinement.enabled:
        return
    for profile in confinement.profiles:
        if profile.unknown and profile.name not in unconfined():
            yield Finding(
                rule="domain-not-told",
                subject=profile.name,
                seen=profile.unknown,
                wanted="whether this domain keeps its programs from anything",
                severity=Severity.UNPROVEN,
            )
    if not seen.caller:
        yield Finding(
            rule="user-not-asked",
            subject="policy",
            seen="it has no domain for users who are not confined, by a name that is known here",
            wanted="which domain a program gets that a user starts",
            severity=Severity.REMARK,
        )


def _mode(seen: SelinuxObservation) -> Iterator[Finding]:
    if seen.confinement is None or not seen.confinement.enabled or seen.enforcing:
        return
    unknown = seen.enforcing is None
    yield Finding(
        rule="mode-not-told" if unknown else "not-enforcing",
        subject="kernel",
        seen="/sys/fs/selinux/enforce cannot be read" if unknown else "SELinux is permissive",
        wanted="enforcing",
        hint="" if unknown else "SELINUX=enforcing in /etc/selinux/config, and no enforcing=0 on the command line",
        severity=Severity.UNPROVEN if unknown else Severity.VIOLATION,
    )


def _domains(seen: SelinuxObservation, policy: SelinuxPolicy) -> Iterator[Finding]:
    if seen.confinement is None or not seen.confinement.enabled:
        return
    entries = {entry.domain: entry for entry in policy.permissive}
    for name in seen.permissive:
        entry = entries.pop(name, None)
        accepted = entry is not None and entry.documented
        mend = f"semanage permissive -d {name}, or take `permissive {name};` out of its module"
        yield Finding(
            rule="permissive-domain",
            subject=name,
            seen="the policy makes this domain permissive",
            wanted="no permissive domain",
            hint=mend if entry is None else "" if accepted else NO_REASON,
            severity=Severity.ACCEPTED if accepted else Severity.VIOLATION,
            reason=entry.reason if entry is not None and accepted else "",
        )
    for name in entries if seen.nameless is not None else ():
        yield Finding(
            rule="unused-acceptance",
            subject=name,
            seen="the profile accepts that this domain is permissive, and it is not",
            wanted="no acceptance without need",
            hint="remove it from the profile",
            severity=Severity.REMARK,
        )
    if seen.nameless is None:
        yield Finding(
            rule="permissive-not-told",
            subject="policy",
            seen="/sys/fs/selinux/policy does not tell which domains are permissive",
            wanted="no permissive domain",
            severity=Severity.UNPROVEN,
        )
    elif seen.nameless:
        yield Finding(
            rule="permissive-domain",
            subject="policy",
            seen=f"it makes {seen.nameless} domains permissive whose names are not known",
            wanted="no permissive domain",
            hint="seinfo --permissive (setools) names them; [[gate.selinux.permissive]] documents one",
        )


def controls(seen: SelinuxObservation, policy: SelinuxPolicy) -> tuple[Control[SelinuxObservation], ...]:
    """Those of the gate `apparmor`, and SELinux's own."""
    shared = apparmor.controls(seen, policy)
    own = (
        Control("a permissive kernel", _permissive, "not-enforcing", "kernel"),
        Control("a permissive domain", _one_domain, "permissive-domain", "osgates_control_t"),
        Control("a permissive domain without a name", _nameless, "permissive-domain", "policy"),
        Control("a domain that confines nobody", _unconfined_service, "unconfined", _CONTROL),
    )
    return (*own, *shared)  # type: ignore[arg-type]


def _permissive(seen: SelinuxObservation) -> SelinuxObservation:
    return apparmor.changed(seen, enabled=True).model_copy(update={"enforcing": False})


def _one_domain(seen: SelinuxObservation) -> SelinuxObservation:
    named = (*seen.permissive, "osgates_control_t")
    return apparmor.changed(seen, enabled=True).model_copy(update={"permissive": named})


def _nameless(seen: SelinuxObservation) -> SelinuxObservation:
    return apparmor.changed(seen, enabled=True).model_copy(update={"nameless": 1})


def _unconfined_service(seen: SelinuxObservation) -> SelinuxObservation:
    """A listener that the kernel enforces a domain on which keeps it from nothing."""
    known = seen.confinement or ConfinementSeen(enabled=True, attachments=(), system="SELinux")
    reason = Evidence(kind=Kind.LISTENING_SERVICE, detail="control")
    label = Attachment(path=_CONTROL, how="exec", profile="unconfined_service_t", mode=Mode.ENFORCE)
    scan = seen.scan.model_copy(
        update={"entries": (*seen.scan.entries, Networked(path=_CONTROL, evidence=(reason,)))}
    )
    changes = {"enabled": True, "attachments": (*known.attachments, label)}
    return seen.model_copy(update={"scan": scan, "confinement": known.model_copy(update=changes)})


def baseline(seen: SelinuxObservation, policy: SelinuxPolicy) -> str:
    """Entries for programs of tier B without a domain of their own."""
    return apparmor.baseline(_told(seen, policy), policy, "selinux")


GATE = Gate(
    name="selinux",
    title="SELinux enforces, and every networked program is confined or documented",
    states=(State.LIVE, State.INSTALLED),
    observation=SelinuxObservation,
    policy=SelinuxPolicy,
    judge=judge,
    controls=controls,
    baseline=baseline,
    compare=apparmor.compare,
)
