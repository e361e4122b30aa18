"""Asks a machine from outside what it answers, and inside for its rules and counters; for the gate `firewall`."""

from __future__ import annotations

import base64
import ipaddress
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pytest_osgates.checks.firewall.policy import FirewallPolicy
from pytest_osgates.checks.firewall.rules import Rule, Ruleset
from pytest_osgates.checks.firewall.seen import (
    Accounts,
    Address,
    Answers,
    BootAnswer,
    BootWatch,
    FirewallObservation,
    How,
    Listener,
    Origin,
    Sweep,
)
from pytest_osgates.model import State
from pytest_osgates.observers import confinement
from pytest_osgates.observers.firewall import inside
from pytest_osgates.observers.firewall.inside import Inside
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.errors import GuestError, HostError
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network import probe_frames, probes
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.settings import Probing, Settings
from pytest_osgates.vm.spec import card_mac
from pytest_osgates.vm.text import one_line

ADDRESS_S = 90.0
WATCHED_S = 30.0
SWEEP_S = 600.0
POLL_S = 0.2
RUNS = 2
# What is asked so long after the address appeared is of the boot, however early the machine was ready.
FIRST_S = 15.0
MAX_STATE = 1 << 17


@dataclass
class Siege:
    """One machine that is ready, and how it is tried."""

    machine: Machine
    state: State
    policy: FirewallPolicy
    progress: ProgressLog
    ready_at: float
    who: str = "firewall"
    pace: float = 1.0


def settings_for(policy: FirewallPolicy, lose_every: int = 0) -> tuple[Settings, ...]:
    """The sinkhole of a machine that is tried. `lose_every`: see there."""
    return (Settings(probing=Probing(boot_ports=policy.boot_ports, lose_every=lose_every)),)


def observe(siege: Siege) -> FirewallObservation:
    """From a machine that is ready to an observation.

    :raise OsgatesError: machine, sinkhole or guest ended while they were needed.
    """
    link, shell = siege.machine.sinkholes[0], siege.machine.shell
    problems: list[str] = []
    _step(siege, "waiting for an address", 0.0, ADDRESS_S)
    before = _await_addresses(siege)
    mac, card = _card(link, before)
    if not card:
        problems.append("the guest has no card with the hardware address that is seen on the wire")
    targets = _targets(link, before, card)
    _await_watched(siege, targets)
    status = link.sweep_status()
    boot, early = _boot(status, siege.ready_at), {one.address for one in before.addresses}
    ruleset = inside.rules(shell, before.tables)
    listeners = _listeners(siege, problems)
    sweeps: list[Sweep] = []
    accounts = Accounts(problem="nothing was tried")
    after = before
    for run in range(1, RUNS + 1):
        plan = list(_plan(targets, mac, siege.policy.origins, listeners, before.groups.get(card))) if card else []
        tried, routes = targets, before.routes
        sweeps, accounts, after = _run(siege, plan, mac, card, run, before)
        accounts = _still_there(accounts, tried, after)
        # Whoever has another address by now is tried by that one.
        targets = _targets(link, after, card)
        came = {(one.family, one.scope) for one in targets} - {(one.family, one.scope) for one in tried}
        led = set(after.routes) - set(routes)
        ours = {kind.hardware.hex() for family in (4, 6) for kind in probes.kinds(family) if kind.hardware}
        unasked = sorted(ours & set(after.groups.get(card, ())) - set(before.groups.get(card, ours)))
        # Once more where something may be lost or new; and then it is for the judge.
        fine = not accounts.problem and not accounts.lost and not accounts.drops
        if fine and not came and not led and not unasked and all(map(_is_proven, sweeps)):
            break
        before = after
    if unasked:
        problems.append(f"the guest joined groups while it was tried: {', '.join(unasked)}")
    again = inside.rules(shell, after.tables)
    _step(siege, "done", 0.0, None, done=True)
    known = {(one.family, one.scope) for one in tried}
    addresses = (*tried, *(one for one in targets if (one.family, one.scope) not in known))
    return FirewallObservation(
        state=siege.state,
        addresses=addresses,
        # One that came, or went, while it was tried, was none.
        default_routes=tuple(family for family in after.routes if family in routes),
        sweeps=tuple(sweeps),
        accounts=accounts,
        boot=boot,
        unwatched=tuple(status["unwatched"]),
        late=tuple(one.address for one in addresses if one.address not in early),
        pace=siege.pace,
        forwarding=tuple(after.forwarding),
        ruleset=ruleset,
        again=None if _shape(again, elements=True) == _shape(ruleset, elements=True) else again,
        changed=_shape(again) != _shape(ruleset),
        groups=probes.groups(),
        listeners=listeners,
        problems=tuple(problems),
    )


def _still_there(accounts: Accounts, targets: list[Address], after: Inside) -> Accounts:
    """An address that is gone is as silent as a closed port; another one of the same card answers the markers."""
    now = {one.address for one in after.addresses}
    gone = [one.address for one in targets if one.address not in now]
    if not gone:
        return accounts
    return accounts.model_copy(
        update={"problem": accounts.problem or f"the guest lost {', '.join(gone)} while it was tried"}
    )


def _listeners(siege: Siege, problems: list[str]) -> tuple[Listener, ...]:
    """Sockets that wait; what is missing of them is added to `problems`. Whose they are, and what other network
    namespaces hold, decides nothing here."""
    try:
        running = confinement.observe_running(siege.machine.shell)
    except GuestError as error:
        problems.append(f"the guest does not list its sockets: {error}")
        return ()
    problems += [f"sockets: {problem}" for problem in running.problems[:5] if not problem.startswith("nobody ")]
    return inside.listeners(running)


def _shape(ruleset: Ruleset, *, elements: bool = False) -> list[object]:
    """To be compared: without counters, and without what is in named sets, whose elements come and go."""
    return [
        ruleset.problem,
        *(
            (
                *(chain.subject, chain.kind, chain.hook, chain.priority, chain.policy, chain.devices),
                *(_rule_shape(rule, elements or '"@' not in rule.text) for rule in chain.rules),
            )
            for chain in ruleset.chains
        ),
    ]


def _rule_shape(rule: Rule, elements: bool) -> object:
    matches = [(match.key, match.negated, match.values if elements else ()) for match in rule.matches]
    branches = [(branch.action, branch.target, branch.values) for branch in rule.branches] if elements else []
    verdict = [(branch.action, branch.target) for branch in rule.branches] if not rule.key else []
    return matches, branches, verdict, rule.key, rule.translates


def _is_proven(sweep: Sweep) -> bool:
    return sweep.done and not any(sweep.of("unproven")) and not sweep.unproven_kinds


def _step(
    siege: Siege, stage: str, elapsed: float, expected: float | None, *, done: bool = False, **counts: int
) -> None:
    siege.progress.step(Step(siege.who, stage, elapsed, expected, counts, done))


# -- whom to try --------------------------------------------------------------------------------------------------


def _await_addresses(siege: Siege) -> Inside:
    """Until the guest has an address of every family that the profile demands; that it never has is for the judge."""
    begun = time.monotonic()
    pause = threading.Event()
    while True:
        siege.machine.check()
        seen = inside.look(siege.machine.shell)
        wanted = {(family, "global") for family in siege.policy.families}
        if "ipv6" in siege.policy.families:
            wanted.add(("ipv6", "link-local"))
        elapsed = time.monotonic() - begun
        if wanted <= {(one.family, one.scope) for one in seen.addresses} or elapsed > ADDRESS_S:
            return seen
        _step(siege, "waiting for an address", elapsed, ADDRESS_S)
        pause.wait(2.0)


def _card(link: SinkholeLink, seen: Inside) -> tuple[str, str]:
    """Hardware address and interface of the card that is probed: the one that was given to it, or the one that the
    guest gave itself."""
    used = [str(mac) for mac in link.sweep_status().get("macs", [])]
    for mac in (card_mac(0), *used):
        if name := seen.card(mac):
            return mac, name
    return card_mac(0), ""


def _targets(link: SinkholeLink, seen: Inside, card: str) -> list[Address]:
    """One address of each family and scope, of this card where that is known; those seen on the wire first."""
    wire = {str(address) for address in link.stats()["addresses"]}
    found: dict[tuple[str, str], Address] = {}
    for one in sorted(seen.addresses, key=lambda one: one.address not in wire):
        if one.interface in ("", card):
            found.setdefault((one.family, one.scope), one.model_copy(update={"interface": card}))
    return list(found.values())


def _await_watched(siege: Siege, targets: list[Address]) -> None:
    """Until the light probe has tried every address often enough, or will not."""
    pause = threading.Event()
    begun = time.monotonic()
    addresses = [one.address for one in targets if one.family in siege.policy.families]

    def enough(address: str) -> bool:
        of = [one for one in status["watched"] if one["address"] == address]
        boot = _boot({"watched": of}, siege.ready_at)
        over = bool(of) and time.monotonic() > max(_booted(one, siege.ready_at) for one in of)
        return over or sum(one.proven for one in boot) >= siege.policy.boot_probes

    while time.monotonic() - begun < WATCHED_S:
        siege.machine.check()
        status = siege.machine.sinkholes[0].sweep_status()
        if all(map(enough, addresses)):
            return
        pause.wait(POLL_S)


def _booted(watched: dict[str, Any], ready_at: float) -> float:
    """Until when the light probe of an address is of the boot: until ready, or until the address is not quite new."""
    return max(ready_at, float(watched["learned"]) + FIRST_S)


def _boot(status: dict[str, Any], ready_at: float) -> tuple[BootWatch, ...]:
    """Of the light probe. Its times are of the same clock as ours: both processes run on this host."""
    found = []
    now = time.monotonic()
    for one in status["watched"]:
        # An address that answers no more while it still boots is not watched either.
        since = min(now, _booted(one, ready_at)) - float(one["last"]) if one["last"] else 0.0
        answers = tuple(
            BootAnswer(
                port=int(port),
                how=_how(int(state))[0],
                origin="beyond" if origin == "beyond" else "link",
                code=_how(int(state))[1],
                before_s=round(ready_at - float(at), 3),
            )
            for origin, port, state, at in one["heard"]
        )
        found.append(
            BootWatch(
                address=one["address"],
                family="ipv6" if ":" in one["address"] else "ipv4",
                groups=one["groups"],
                # Of whole seconds: the one in which it ends does not count.
                proven=sum(int(n) for at, n in one["seconds"] if int(at) + 1 <= _booted(one, ready_at)),
                alive_s=round(ready_at - one["alive"], 3) if one["alive"] else 0.0,
                longest_gap=round(max(float(one["longest_gap"]), since), 3),
                answers=answers,
            )
        )
    return tuple(found)


# -- trying -------------------------------------------------------------------------------------------------------


def _plan(
    targets: list[Address],
    mac: str,
    origins: Sequence[Origin],
    listeners: Sequence[Listener],
    groups: Sequence[str] | None,
) -> Iterator[dict[str, object]]:
    """What listens is tried first, by somebody of whom nothing was heard yet: a filter that counts connections, and
    locks out who makes many, lets the first ones through. Then everything. `groups`: that the card takes; None: the
    guest does not say, and all are tried."""
    tcp = sorted({one.port for one in listeners if one.protocol == "tcp"})
    udp = sorted({*probes.payloads(), *(one.port for one in listeners if one.protocol == "udp")})
    for only in (True, False):
        for one in targets:
            for origin in origins:
                if origin == "beyond" and one.scope == "link-local":
                    continue
                where = f"{one.family} {one.scope} {origin}"
                base = {"target": one.address, "mac": mac, "origin": origin, "family": one.family, "scope": one.scope}
                if only:
                    if tcp:
                        yield {**base, "name": f"listeners {where}", "protocol": "tcp", "ports": tcp}
                    continue
                yield {**base, "name": f"tcp {where}", "protocol": "tcp", "ports": None}
                yield {**base, "name": f"udp {where}", "protocol": "udp", "ports": udp}
                taken = {} if groups is None else {"groups": list(groups)}
                yield {**base, "name": f"kinds {where}", "protocol": "kinds", "ports": [], **taken}


def _run(
    siege: Siege, plan: list[dict[str, object]], mac: str, card: str, run: int, seen: Inside
) -> tuple[list[Sweep], Accounts, Inside]:
    """All sweeps, between two looks at the counters of both sides; and the second look. `seen`: the one before."""
    link, shell = siege.machine.sinkholes[0], siege.machine.shell
    if not plan:
        return [], Accounts(problem="there is no address to try"), seen
    begun = time.monotonic()
    # The light probe ends with it: what is counted is counted while nothing is sent.
    first = len(link.sweep([]))
    problem = ""
    before = inside.look(shell)
    counted = _count(siege, link, mac)
    link.sweep(plan)
    pause = threading.Event()
    while True:
        siege.machine.check()
        status = link.sweep_status()
        elapsed = time.monotonic() - begun
        if not status["running"]:
            break
        if elapsed > SWEEP_S:
            problem = f"the sweeps did not end in {SWEEP_S:.0f} s"
            break
        _step(siege, f"trying {status['sweep'] or 'late answers'}", elapsed, None, ports_left=int(status["left"]))
        pause.wait(POLL_S)
    recount = _count(siege, link, mac)
    after = inside.look(shell)
    results = [link.sweep_result(first + index) for index in range(len(plan))]
    sweeps = [_sweep(asked, told) for asked, told in zip(plan, results, strict=True)]
    if counted is None or recount is None:
        problem = problem or "the guest was never without traffic: nobody can say how many frames it was sent"
        counted = recount = (0, 0)
    if status["answers_dropped"]:
        problem = problem or f"{status['answers_dropped']} frames found no room on their way"
    if missing := inside.uncounted(before, card) or inside.uncounted(after, card):
        problem = problem or f"the guest does not count {', '.join(missing)[:200]}"
    accounts = Accounts(
        sent=recount[0] - counted[0],
        own=sum(sweep.frames for sweep in sweeps),
        received=recount[1] - counted[1],
        drops=inside.losses(before, after, card),
        reached=inside.reached(before, after),
        loopback=inside.loopback(before, after),
        lost_on_purpose=int(status["lost_on_purpose"]),
        runs=run,
        problem=problem,
    )
    return sweeps, accounts, after


def _count(siege: Siege, link: SinkholeLink, mac: str) -> tuple[int, int] | None:
    """Frames sent, frames received: while nothing was sent, so that both are of one moment. None: never."""
    pause = threading.Event()
    for _ in range(20):
        pause.wait(POLL_S)
        sent = int(link.stats()["tx_frames"])
        pause.wait(POLL_S)
        taken = inside.received(siege.machine.shell, mac)
        if int(link.stats()["tx_frames"]) == sent:
            return sent, taken
    return None


def _how(state: int) -> tuple[How, int]:
    """A byte of the prober, and the code of a rejection; -1: another error."""
    if state == probe_frames.OPEN:
        return "open", 0
    if state == probe_frames.CLOSED:
        return "closed", 0
    if probe_frames.REJECTED4 <= state < probe_frames.ERROR:
        return "rejected", state & 15
    return ("rejected", -1) if state == probe_frames.ERROR else ("unproven", 0)


def answers_of(state: bytes) -> tuple[Answers, ...]:
    """From one byte a port to ranges."""
    found: list[Answers] = []
    skipped = (probe_frames.SILENT, probe_frames.UNASKED)
    port = 1
    while port < len(state):
        kind = state[port]
        if kind in skipped:
            port += 1
            continue
        last = port
        while last + 1 < len(state) and state[last + 1] == kind:
            last += 1
        how, code = _how(kind)
        found.append(Answers(how=how, first=port, last=last, code=code))
        port = last + 1
    return tuple(found)


def _sweep(asked: dict[str, object], told: dict[str, Any]) -> Sweep:
    protocol = cast(Literal["tcp", "udp", "kinds"], asked["protocol"])
    state = b""
    if told["state"]:
        # Our own process wrote it; but it heard strangers.
        state = zlib.decompressobj().decompress(base64.b64decode(told["state"]), MAX_STATE)
        if len(state) != 65536:
            raise HostError("the prober's result is cut short")
    return Sweep(
        name=str(asked["name"]),
        protocol=protocol,
        family="ipv4" if asked["family"] == "ipv4" else "ipv6",
        origin="link" if asked["origin"] == "link" else "beyond",
        scope="global" if asked["scope"] == "global" else "link-local",
        target=str(ipaddress.ip_address(str(told["target"]))),
        source=str(ipaddress.ip_address(str(told["source"]))),
        asked=int(told["asked"]),
        full=not str(asked["name"]).startswith("listeners"),
        frames=int(told["frames"]),
        repeated=int(told["repeated"]),
        strange=int(told["strange"]),
        elsewhere=tuple(told["elsewhere"]),
        paced="link" if told["paced"] == "link" else "answers",
        seconds=float(told["seconds"]),
        done=bool(told["done"]),
        answers=answers_of(state),
        kinds=tuple(told["kinds"]),
        heard={one_line(name, 60): one_line(how, 60) for name, how in told["heard"].items()},
        unproven_kinds=tuple(told["unproven"]),
    )


__all__ = ["Siege", "observe", "settings_for"]
