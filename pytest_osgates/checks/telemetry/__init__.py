"""Gate `telemetry`: nothing leaves the machine that the profile does not allow, and the silence is proven."""

from __future__ import annotations

import json

from pytest_osgates.checks.telemetry.contacts import Contact, group
from pytest_osgates.checks.telemetry.controls import controls
from pytest_osgates.checks.telemetry.judge import contact_finding, judge
from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.seen import TelemetryObservation
from pytest_osgates.model import Gate, Severity, State

__all__ = ["GATE", "TelemetryObservation", "TelemetryPolicy", "judge"]


def baseline(seen: TelemetryObservation, policy: TelemetryPolicy) -> str:
    """TOML that would allow what is not allowed yet, reasons empty; vendors cannot be allowed and are comments."""
    blocks = []
    for contact in group(seen):
        finding = contact_finding(contact, seen, policy, set())
        if finding.severity is not Severity.VIOLATION:
            continue
        said = " ".join(f"{finding.rule}: {finding.seen}".split())[:300]
        if finding.rule == "vendor":
            blocks.append(f"# {contact.subject} cannot be allowed. {said}\n")
            continue
        key = "address" if contact.literal else "name"
        blocks.append(
            f"# {said}\n[[gate.telemetry.allow]]\n{key} = {json.dumps(contact.subject)}\n"
            f"services = {json.dumps(list(contact.services))}\n"
            f"{'outside_tunnel = true' + chr(10) if policy.vpn is not None and not contact.tunnel else ''}"
            'reason = ""\n'
        )
    return "\n".join(blocks)


def _named(contact: Contact) -> str:
    return f"{contact.subject} inside the tunnel" if contact.tunnel else contact.subject


def compare(before: TelemetryObservation, now: TelemetryObservation) -> list[str]:
    """Contacts that came or went, and those that are made by other services than before."""
    then = {_named(contact): contact for contact in group(before)}
    since = {_named(contact): contact for contact in group(now)}
    lines = [f"contact {name}: gone" for name in then if name not in since]
    for name, contact in since.items():
        services = ", ".join(contact.services)
        if name not in then:
            lines.append(f"contact {name}: new ({services})")
        elif (was := ", ".join(then[name].services)) != services:
            lines.append(f"contact {name}: {was} -> {services}")
    if before.timing.mode != now.timing.mode:
        lines.append(f"time: {before.timing.mode} -> {now.timing.mode}")
    return lines


GATE = Gate(
    name="telemetry",
    title="nothing leaves the machine that the profile does not allow",
    states=(State.LIVE, State.INSTALLED),
    observation=TelemetryObservation,
    policy=TelemetryPolicy,
    judge=judge,
    controls=controls,
    baseline=baseline,
    compare=compare,
)
