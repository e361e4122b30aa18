"""What was seen of a machine's firewall, from outside and inside: the observation of the gate `firewall`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pytest_osgates.checks.firewall.rules import Family, Ruleset
from pytest_osgates.model import Model, Observation, State

Origin = Literal["link", "beyond"]
Scope = Literal["global", "link-local"]
How = Literal["open", "closed", "rejected", "unproven"]


class Answers(Model):
    """Ports, `first` to `last`, of which the same is known. ``code``: of a rejection, the ICMP code; -1: another
    error. ``unproven``: nothing was heard, and nobody knows whether the probe arrived. What is not listed is silent.
    """

    how: How
    first: int
    last: int
    code: int = 0

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1

    @property
    def text(self) -> str:
        """For findings."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Sweep(Model):
    """One pass over ports (``protocol`` tcp or udp) or over messages of other protocols (kinds).

    ``frames``: all that was sent for it. ``strange``: answers that fit no probe. ``elsewhere``: UDP ports that
    answered though another one was asked. ``paced``: by the guest's answers, or by the link alone. ``heard``: by
    kind.
    """

    name: str
    protocol: Literal["tcp", "udp", "kinds"]
    family: Family
    origin: Origin
    scope: Scope
    target: str
    source: str
    asked: int
    full: bool = False
    frames: int = 0
    repeated: int = 0
    strange: int = 0
    elsewhere: tuple[int, ...] = ()
    paced: Literal["answers", "link"] = "answers"
    seconds: float = 0.0
    done: bool = True
    answers: tuple[Answers, ...] = ()
    kinds: tuple[str, ...] = ()
    heard: dict[str, str] = Field(default_factory=dict)
    unproven_kinds: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """For findings."""
        scope = " link-local" if self.scope == "link-local" else ""
        return f"{'IPv4' if self.family == 'ipv4' else 'IPv6'}{scope} from {place(self.origin)}"

    def of(self, how: How) -> Iterator[Answers]:
        """Those ports."""
        return (answer for answer in self.answers if answer.how == how)

    def heard_of(self) -> bytes:
        """One byte a port: 1 where it is not silent. For whoever asks about many: there may be as many answers."""
        ports = bytearray(65536)
        for answer in self.answers:
            first, last = max(0, answer.first), min(65535, answer.last)
            ports[first : last + 1] = b"\1" * max(0, last + 1 - first)
        return bytes(ports)

    def state(self, port: int) -> How | None:
        """What is known of one port; None: silent, or not asked."""
        return next((answer.how for answer in self.answers if answer.first <= port <= answer.last), None)


class Accounts(Model):
    """What both sides counted while the sweeps ran. ``sent``: frames that the sinkhole sent, ``own`` those of the
    prober; ``received``: by the guest's card. ``drops``: the guest's counters of losses that grew. ``problem``: why
    they cannot be compared. ``reached``: what got past the filter, by the guest's own counters; ``loopback``: packets
    that it sent to itself.
    """

    sent: int = 0
    own: int = 0
    received: int = 0
    drops: dict[str, int] = Field(default_factory=dict)
    reached: dict[str, int] = Field(default_factory=dict)
    loopback: int = 0
    lost_on_purpose: int = 0
    runs: int = 1
    problem: str = ""

    @property
    def lost(self) -> int:
        """Frames that the guest's card did not count."""
        return self.sent - self.received


class Address(Model):
    """Of the guest, on the card that is probed."""

    address: str
    family: Family
    scope: Scope
    interface: str = ""


class BootAnswer(Model):
    """An answer to the light probe. ``before_s``: seconds before the machine was ready."""

    port: int
    how: How
    origin: Origin
    code: int = 0
    before_s: float = 0.0


class BootWatch(Model):
    """The light probe of one address, until the machine was ready. ``groups`` of probes, ``proven`` of them taken by
    the guest while it booted; ``alive_s``: how long before ready it answered first; ``longest_gap``: between two
    answers, or from the last one to the end of the boot."""

    address: str
    family: Family
    groups: int
    proven: int
    alive_s: float
    longest_gap: float
    answers: tuple[BootAnswer, ...] = ()


class Listener(Model):
    """A socket of the guest that waits for others."""

    protocol: Literal["tcp", "udp"]
    family: Family
    address: str
    port: int
    program: str = ""

    @property
    def text(self) -> str:
        """For findings."""
        return f"{self.program or 'a program'} on {self.address}"


class FirewallObservation(Observation):
    """``default_routes``: families with a way to beyond. ``again``: the ruleset after the sweeps, if it is another;
    ``changed``: not in the elements of its sets alone. ``groups``: addresses that a datagram for many has, of those
    that the prober knows. ``unwatched``: addresses for which the light probe had no room; ``late``: those that were
    not there yet when the machine was ready. ``pace``: how much slower than others this host is. ``forwarding``:
    families of which the machine passes packets on."""

    state: State
    addresses: tuple[Address, ...]
    default_routes: tuple[Family, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    accounts: Accounts = Field(default_factory=Accounts)
    boot: tuple[BootWatch, ...] = ()
    unwatched: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    pace: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    forwarding: tuple[Family, ...] = ()
    ruleset: Ruleset
    again: Ruleset | None = None
    changed: bool = False
    groups: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def considered(self) -> int | None:
        unproven = sum(answer.count for sweep in self.sweeps for answer in sweep.of("unproven"))
        return max(0, sum(sweep.asked for sweep in self.sweeps) - unproven)


_DATAGRAM = re.compile(r"udp/(\d{1,5}) to (\S{1,45})")


def datagram(kind: str) -> tuple[int, str] | None:
    """Port and group of a kind that is a datagram for many: ``udp/PORT to GROUP``; None: it is none."""
    match = _DATAGRAM.fullmatch(kind)
    return None if match is None else (int(match[1]), match[2])


def place(origin: Origin) -> str:
    """For findings."""
    return "the link" if origin == "link" else "beyond the gateway"
