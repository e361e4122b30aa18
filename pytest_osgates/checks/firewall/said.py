"""How findings of the gate `firewall` are made."""

from __future__ import annotations

from pytest_osgates.checks.firewall.seen import Origin, Sweep
from pytest_osgates.model import Finding, Severity


def finding(
    rule: str,
    subject: str,
    seen: str,
    wanted: str,
    severity: Severity = Severity.VIOLATION,
    hint: str = "",
    reason: str = "",
) -> Finding:
    """One."""
    return Finding(rule=rule, subject=subject, seen=seen, wanted=wanted, severity=severity, hint=hint, reason=reason)


def unproven(rule: str, subject: str, seen: str, wanted: str) -> Finding:
    """One that says that nothing is known."""
    return finding(rule, subject, seen, wanted, Severity.UNPROVEN)


def scopes(family: str, origin: Origin) -> tuple[str, ...]:
    """From where which addresses can be reached."""
    return ("link-local", "global") if (family, origin) == ("ipv6", "link") else ("global",)


def places(sweeps: list[Sweep]) -> str:
    """Where an answer came from."""
    return ", ".join(dict.fromkeys(sweep.where for sweep in sweeps))
