"""Whether silence means something: a dead card is silent as well."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from pytest_osgates.checks.telemetry.policy import TelemetryPolicy
from pytest_osgates.checks.telemetry.proof_declared import missing_ways, proof_declared, unproven
from pytest_osgates.checks.telemetry.seen import CanarySeen, CardSeen, Moment, TelemetryObservation
from pytest_osgates.model import Finding

# Frames to the guest that were still on their way when the machine was switched off.
IN_FLIGHT = 64
# The guest's own clock and the one that stamps captures, between two canaries: seconds, and a part of the time
# between.
MAX_DRIFT_S, MAX_DRIFT = 3.0, 0.02
# Of the sinkhole's answers in guest time: beyond this, clients give up what they would have done.
MAX_LATENCY_S = 1.0
# In real time nothing but a host that stood still makes an answer late: as long as resolv.conf(5) waits for one.
MAX_REAL_LATENCY_S = 5.0


def proof(seen: TelemetryObservation, policy: TelemetryPolicy) -> list[Finding]:
    """Everything without which nothing is proven."""
    return [
        *(finding for card in seen.cards for finding in _card(card)),
        *_cards(seen, policy),
        *_canaries(seen, policy),
        *_time(seen, policy),
        *proof_declared(seen, policy),
    ]


def _cards(seen: TelemetryObservation, policy: TelemetryPolicy) -> Iterator[Finding]:
    watched = sum(not card.tunnel for card in seen.cards)
    if watched < policy.cards:
        yield unproven("cards", "network cards", f"{watched} were watched", f"{policy.cards}")


def _card(card: CardSeen) -> Iterator[Finding]:
    name = card.word
    if card.problem:
        yield unproven(
            *("capture", name, f"the capture {card.problem}", "a capture from power-on to power-off without a hole"),
            *("see qemu.log: a disk without space stops it", card.capture),
        )
    if card.trouble:
        yield unproven("sinkhole", name, card.trouble, "a sinkhole that lived and wrote everything down")
    if card.counted_out is None or card.counted_in is None:
        yield unproven("sinkhole", f"{name} count", "the sinkhole did not say what it counted", "its count")
    elif card.captured_out != card.counted_out or not 0 <= card.counted_in - card.captured_in <= IN_FLIGHT:
        yield unproven(
            "count-mismatch",
            name,
            f"captured {card.captured_out} frames from the guest and {card.captured_in} to it,"
            f" the sinkhole counted {card.counted_out} and {card.counted_in}",
            "the same",
            evidence=card.capture,
        )
    if not card.lease and not card.tunnel:
        yield unproven(
            *("no-lease", name, "no address was taken", "a lease, or an address by router advertisement"),
            "a system without a network sends nothing: that proves nothing",
        )


def _canaries(seen: TelemetryObservation, policy: TelemetryPolicy) -> Iterator[Finding]:
    found = {canary.moment: canary for canary in seen.canaries}
    for moment in Moment:
        canary = found.get(moment)
        if canary is None:
            yield unproven("canary", moment, "was not planted", "a sign of life that was captured")
            continue
        missing = list(_missing(canary, policy))
        if missing:
            why = f" ({canary.why})" if canary.why else ""
            yield unproven(
                *("canary", moment, "; ".join(missing) + why, "a sign of life that was captured"),
                "what the user's programs send does not reach the network, or the network card is dead",
            )
    times = [found[moment].at for moment in Moment if moment in found]
    known = [at for at in times if at is not None]
    if len(known) == len(times) and any(later <= earlier for earlier, later in pairwise(known)):
        yield unproven(
            *("canary", "order", "at " + ", ".join(f"{at:.1f} s" for at in known), "start, middle and end in turn")
        )


def _missing(canary: CanarySeen, policy: TelemetryPolicy) -> Iterator[str]:
    if not canary.sent:
        yield "no program in the guest could send it"
    elif not canary.datagram:
        yield "it was sent and not captured"
    elif not canary.through_gateway:
        yield "it did not go to the gateway"
    if policy.names == "dns" and not canary.query:
        yield "its name was not asked for on the wire"
    elif policy.names == "dns" and not canary.resolved:
        yield "its name was asked for and got no address (a resolver that validates DNSSEC?)"
    if not canary.probe:
        yield "the guest did not answer when asked over the link"
    yield from missing_ways(canary, policy)


def _time(seen: TelemetryObservation, policy: TelemetryPolicy) -> Iterator[Finding]:
    timing = seen.timing
    if seen.stopped_early:
        yield unproven("stopped-early", "window", seen.stopped_early, f"{policy.idle_s:.0f} s watched to their end")
    elif timing.idle_s < policy.idle_s:
        yield unproven(
            *("window", "idle", f"{timing.idle_s:.1f} s between the canaries", f"{policy.idle_s:.0f} s"),
            "give --iso-idle at least as long as the profile's idle_s, or leave it out",
        )
    slow = timing.latency_s or 0.0
    if timing.mode == "real" and slow > MAX_REAL_LATENCY_S:
        yield unproven(
            *("latency", "real time", f"an answer took {slow:.2f} s", f"at most {MAX_REAL_LATENCY_S:.0f} s"),
            "the host was too busy: what waited for an answer may have given up",
        )
    if timing.mode != "real" and (timing.latency_s is None or timing.latency_s > MAX_LATENCY_S):
        took = "was not measured" if timing.latency_s is None else f"took {timing.latency_s:.2f} s of guest time"
        yield unproven(
            *("latency", "accelerated time", f"an answer {took}", f"at most {MAX_LATENCY_S:.0f} s"),
            "the host was too busy for idle time to be skipped: let it do nothing else meanwhile, or use real time",
        )
    if timing.mode != "real":
        yield from _clocks(seen)
    if not seen.powered_off:
        yield unproven(
            *("power-off", "shutdown", "the guest did not go down when asked to", "traffic until power-off"),
            "what it would send at the end is not known",
        )


def _clocks(seen: TelemetryObservation) -> Iterator[Finding]:
    """Whether skipped time passed for the guest, too: its own clock between the first canary and each other one."""
    stamps = [(canary.moment, canary.clock, canary.at) for canary in seen.canaries]
    first = next(((clock, at) for _, clock, at in stamps if clock is not None and at is not None), None)
    for moment, clock, at in stamps:
        if first is None or clock is None or at is None:
            yield unproven("clock", str(moment), "the guest did not tell its time", "the guest's time at each canary")
            continue
        by_guest, by_capture = clock - first[0], at - first[1]
        if abs(by_guest - by_capture) > max(MAX_DRIFT_S, MAX_DRIFT * by_capture):
            yield unproven(
                *(
                    "clock",
                    str(moment),
                    f"{by_guest:.1f} s by the guest's clock, {by_capture:.1f} s by the capture's",
                ),
                *("the same time for both", "use --iso-time real"),
            )
