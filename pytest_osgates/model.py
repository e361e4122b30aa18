"""The words that everything else is said in: observations, policies, findings, controls, verdicts, gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Verdict(StrEnum):
    """What a gate says. Nothing skipped, empty, timed out or unobservable is a PASS."""

    PASS = "PASS"  # noqa: S105  (a verdict, not a password)
    FAIL = "FAIL"
    NOT_PROVEN = "NOT PROVEN"


class State(StrEnum):
    """How far a machine has come."""

    IMAGE = "image"
    LIVE = "live"
    INSTALLED = "installed"
    TAMPERED = "tampered"


class Severity(StrEnum):
    """What a finding does to the verdict."""

    VIOLATION = "violation"  # FAIL
    UNPROVEN = "unproven"  # NOT PROVEN
    ACCEPTED = "accepted"  # a violation that the profile accepts, with its reason
    REMARK = "remark"  # nothing: for the reader


class Model(BaseModel):
    """Frozen data that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Model):
    """One violation or remark: what was seen, what was wanted, where the evidence is, how to mend it."""

    rule: str
    subject: str
    seen: str
    wanted: str
    evidence: str = ""
    hint: str = ""
    severity: Severity = Severity.VIOLATION
    reason: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """By which a control, a fault image or a baseline names it."""
        return (self.rule, self.subject)


class Observation(Model):
    """What was seen, free of opinion."""

    schema_version: int = 1

    @property
    def considered(self) -> int | None:
        """How many things were looked at, where a gate counts them."""
        return None


class Policy(Model):
    """What a distro profile demands of one gate."""

    # A deadline without end is none, and nothing is less than what is not a number.
    model_config = ConfigDict(allow_inf_nan=False)


class Contradiction(ValueError):
    """Entries of a policy that cannot all hold. `entries`: where they stand in it, such as ``("unit", 3)``."""

    def __init__(self, what: str, entries: Iterable[tuple[str | int, ...]] = ()) -> None:
        super().__init__(what)
        self.entries = tuple(entries)


class Acceptance(Model):
    """A documented deviation. An empty reason counts as none."""

    reason: str = ""

    @property
    def documented(self) -> bool:
        """Whether somebody gave a reason."""
        return bool(self.reason.strip())


O = TypeVar("O", bound=Observation)  # noqa: E741
P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class Control(Generic[O]):
    """A sabotage of the observation, and the finding that it must add."""

    name: str
    sabotage: Callable[[O], O]
    rule: str
    subject: str
    severity: Severity = Severity.VIOLATION


@dataclass(frozen=True)
class Gate(Generic[O, P]):
    """One gate: everything but how its observation is made.

    `cases` gives the names of the rows that together make the gate, from a policy and the machine's firmwares; each
    row is a test of its own, and the gate passes only when all rows pass. `state_of_case`: the state that a row is
    judged on, for a gate whose rows differ in it; the profile's section then names none. `controls` that depend on
    what the profile demands are a function of the observation and the policy. `baseline` writes acceptances with
    empty reasons, as TOML, for what is not accepted yet. `machine_of_case` names the machine
    that a row shares with others, which then stay with one worker; empty: none. `compare` says in lines of text what
    an earlier observation of a row and a later one (in this order) differ in, beyond their findings; no line if in
    nothing that matters.
    """

    name: str
    title: str
    states: tuple[State, ...]
    observation: type[O]
    policy: type[P]
    judge: Callable[[O, P], list[Finding]]
    controls: tuple[Control[O], ...] | Callable[[O, P], tuple[Control[O], ...]]
    cases: Callable[[P, tuple[str, ...]], tuple[str, ...]] = field(default=lambda policy, firmwares: ("",))
    baseline: Callable[[O, P], str] | None = None
    state_of_case: Callable[[str], State] | None = None
    machine_of_case: Callable[[str], str] = field(default=lambda case: "")
    compare: Callable[[O, O], list[str]] | None = None

    def controls_for(self, observation: O, policy: P) -> tuple[Control[O], ...]:
        """The controls to run on one observation."""
        return self.controls(observation, policy) if callable(self.controls) else self.controls


AnyGate = Gate[Any, Any]
