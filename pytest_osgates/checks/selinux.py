"""Gate `selinux`: SELinux enforces, and every networked program gets a domain that confines it, or is documented.

Judged by the rules of the gate `apparmor`; what is the label there, is the domain here. A domain that the kernel
calls permissive is what a profile in complain mode is.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from pytest_osgates.checks import apparmor
from pytest_osgates.checks.apparmor_model import ApparmorObservation, ApparmorPolicy, Mode
from pytest_osgates.model import Control, Finding, Gate, Severity, State

# What Fedora's targeted policy gives to what has no domain of its own: to services, to old init scripts, to whoever
# logs in; and the domains of the kernel and of the first process, which keep nobody from anything that counts here.
UNCONFINED = ("unconfined_service_t", "initrc_t", "unconfined_t", "unconfined_execmem_t", "kernel_t", "init_t")


class SelinuxObservation(ApparmorObservation):
    """``enforcing`` None: nobody could tell. ``permissive``: domains that the installed policy makes so, whether
    anything runs in them or not; None: the policy's modules could not be read. ``domain``: the first process's."""

    enforcing: bool | None = None
    permissive: tuple[str, ...] | None = None
    domain: str = ""


class SelinuxPolicy(ApparmorPolicy):
    """``[gate.selinux]``. ``unconfined``: domains that confine nobody."""

    unconfined: tuple[str, ...] = Field(default=UNCONFINED, min_length=1)


def judge(seen: SelinuxObservation, policy: SelinuxPolicy) -> list[Finding]:
    """Whether it enforces at all, then every program."""
    return [*_mode(seen), *_domains(seen), *apparmor.judge(_told(seen, policy), policy)]


def _told(seen: SelinuxObservation, policy: SelinuxPolicy) -> SelinuxObservation:
    """What has a domain that confines nobody is unconfined, whatever its mode."""
    if seen.confinement is None:
        return seen
    labels = tuple(
        label.model_copy(update={"mode": Mode.UNCONFINED}) if label.profile in policy.unconfined else label
        for label in seen.confinement.attachments
    )
    return seen.model_copy(update={"confinement": seen.confinement.model_copy(update={"attachments": labels})})


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


def _domains(seen: SelinuxObservation) -> Iterator[Finding]:
    if seen.permissive is None:
        yield Finding(
            rule="permissive-not-told",
            subject="policy",
            seen="the modules of the policy cannot be read: only the domains of what was looked at are known",
            wanted="no permissive domain",
            severity=Severity.REMARK,
        )
    for name in seen.permissive or ():
        yield Finding(
            rule="permissive-domain",
            subject=name,
            seen="the policy makes this domain permissive",
            wanted="no permissive domain",
            hint=f"semanage permissive -d {name}",
        )


def controls(seen: SelinuxObservation, policy: SelinuxPolicy) -> tuple[Control[SelinuxObservation], ...]:
    """Those of the gate `apparmor`, and SELinux's own."""
    shared = apparmor.controls(seen, policy)
    own = (
        Control("a permissive kernel", _permissive, "not-enforcing", "kernel"),
        Control("a permissive domain", _one_domain, "permissive-domain", "osgates_control_t"),
    )
    return (*own, *shared)  # type: ignore[arg-type]


def _permissive(seen: SelinuxObservation) -> SelinuxObservation:
    return apparmor.changed(seen, enabled=True).model_copy(update={"enforcing": False})  # type: ignore[return-value]


def _one_domain(seen: SelinuxObservation) -> SelinuxObservation:
    return seen.model_copy(update={"permissive": (*(seen.permissive or ()), "osgates_control_t")})


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
