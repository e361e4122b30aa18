"""Watches a machine's network from power-on to power-off, and plants the canaries that prove that it was watched."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_osgates.checks.telemetry.seen import TUNNELS, Moment, TelemetryObservation, Timing
from pytest_osgates.model import State
from pytest_osgates.observers.telemetry.attribution import Journal, socket_owners
from pytest_osgates.observers.telemetry.build import Card, build
from pytest_osgates.observers.telemetry.canary import Canary, Planted, plant
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm import clock
from pytest_osgates.vm.errors import ChannelError, GuestError, HostError, OsgatesError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.declared import Resolver, Vpn
from pytest_osgates.vm.network.settings import Settings, TlsAnswer
from pytest_osgates.vm.spec import card_mac
from pytest_osgates.vm.text import one_line

LEASE_S = 90.0
PROBE_S = 10.0
POLL_S = 0.5
# How often what was captured so far is judged, for the display and for --exitfirst.
LOOK_S = 15.0
POWER_OFF_S = 180.0
SHELL_S = 60.0
MAX_CAPTURE = 2 << 30
MAX_LOOK = 64 << 20
# Events that name somebody out there: worth asking at once whose socket it is.
_CONTACTS = frozenset({"dns", "tcp", "udp", "ntp", "quic", "wireguard", "openvpn"})
MAX_ASKED = 40


@dataclass
class Watch:
    """One machine that is ready, and how it is to be watched.

    `window_s`: guest seconds between the first canary and the last. `names`: whether its programs look names up.
    `violations`: how many violations a judge sees in what there is so far. `stop_early`: at the first. `skipping`:
    None for real time.
    """

    machine: Machine
    state: State
    window_s: float
    names: bool
    progress: ProgressLog
    violations: Callable[[TelemetryObservation], int]
    stop_early: bool = False
    skipping: bool = False
    who: str = "telemetry"
    planted: list[Planted] = field(default_factory=list)
    probed: dict[str, bool] = field(default_factory=dict)
    owners: list[dict[tuple[str, int], str]] = field(default_factory=list)
    tails: list[_Tail] = field(default_factory=list)
    stopped_early: str = ""
    timers: tuple[str, ...] | None = ()
    tunnels: dict[str, None] = field(default_factory=dict)
    warp: float = 1.0


def settings_for(
    window_s: float,
    cards: int,
    vpn: Vpn | None = None,
    secure: Resolver | None = None,
    tls: TlsAnswer = TlsAnswer.ALERT,
) -> tuple[Settings, ...]:
    """The sinkholes of a watched machine. Leases are renewed within the window: that may start something."""
    lease = max(60, int(window_s * 0.8))
    return tuple(
        Settings(
            subnet=2 + index, mac=f"52:55:0a:00:{2 + index:02x}:02", lease_s=lease, vpn=vpn, secure=secure, tls=tls
        )
        for index in range(cards)
    )


def observe(watch: Watch) -> TelemetryObservation:
    """From a machine that is ready to an observation; the machine is powered off.

    :raise OsgatesError: machine or sinkhole ended while they were needed.
    """
    links = watch.machine.sinkholes
    watch.owners = [{} for _ in links]
    watch.tails = [_Tail(link.events, owners) for link, owners in zip(links, watch.owners, strict=True)]
    watch.tails += [
        _Tail(link.tunnel_events, owners)
        for link, owners in zip(links, watch.owners, strict=True)
        if link.settings.vpn is not None
    ]
    _step(watch, "waiting for an address", 0.0, LEASE_S)
    _await_address(watch)
    watch.timers = _timers(watch)
    watch.tunnels.update(dict.fromkeys(tunnels(watch.machine.shell)))
    _plant(watch, Moment.START)
    begun = time.monotonic()
    if watch.skipping:
        first = clock.guest_time(watch.machine)
        with clock.Governor(watch.machine) as governor:
            # The clock of the machine tells whole seconds.
            _idle(watch, lambda: clock.guest_time(watch.machine) - first - 1.0)
            watch.warp = (clock.guest_time(watch.machine) - first) / max(1e-3, time.monotonic() - begun)
            _end(watch)
        if governor.failure is not None:
            raise governor.failure
    else:
        _idle(watch, lambda: time.monotonic() - begun)
        _end(watch)
    off = _power_off(watch)
    _step(watch, "analysing the capture", 0.0, None)
    observation = _observation(watch, final=True, powered_off=off)
    _step(watch, "done", 0.0, None, done=True)
    return observation


def _end(watch: Watch) -> None:
    if not watch.stopped_early:
        _plant(watch, Moment.END)
        watch.tunnels.update(dict.fromkeys(tunnels(watch.machine.shell)))
    _attribute(watch)


def _idle(watch: Watch, guest_seconds: Callable[[], float]) -> None:
    """Until the window has passed by `guest_seconds`, or there is no use in waiting on."""
    middle = False
    looked = time.monotonic()
    pause = threading.Event()
    poll = POLL_S / 10 if watch.skipping else POLL_S
    while (elapsed := guest_seconds()) < watch.window_s:
        watch.machine.check()
        _attribute(watch)
        if not middle and elapsed >= watch.window_s / 2:
            _plant(watch, Moment.MIDDLE)
            middle = True
        if _too_much(watch):
            watch.stopped_early = f"the guest sent more than {MAX_CAPTURE >> 30} GiB"
            return
        if time.monotonic() - looked >= LOOK_S:
            count = _look(watch, elapsed)
            looked = time.monotonic()
            if count and watch.stop_early:
                watch.stopped_early = "stopped at the first violation, as --exitfirst asks"
                return
        pause.wait(min(poll, max(0.0, watch.window_s - elapsed)))
    if not middle:
        _plant(watch, Moment.MIDDLE)


def _step(
    watch: Watch, stage: str, elapsed: float, expected: float | None, *, done: bool = False, **counts: int
) -> None:
    watch.progress.step(Step(watch.who, stage, elapsed, expected, counts, done))


def _await_address(watch: Watch) -> None:
    """Until the guest has used an address on every card; that it never does is for the judge."""
    pause = threading.Event()
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < LEASE_S:
        watch.machine.check()
        if all(_has_address(link.events) for link in watch.machine.sinkholes):
            return
        _step(watch, "waiting for an address", elapsed, LEASE_S)
        pause.wait(POLL_S)


def _has_address(events: Path) -> bool:
    try:
        text = events.read_bytes()[: 1 << 20]
    except OSError:
        return False
    granted = any(b'"granted": "1' in line for line in text.splitlines())
    return granted or b'"address": "2001:db8:' in text


def _timers(watch: Watch) -> tuple[str, ...] | None:
    """Timers that are due within the window, or within as long again: ``UNIT in SECONDS s``; None: nobody told."""
    try:
        shell = watch.machine.shell
        done = shell.run(
            "date +%s; systemctl list-timers --all --output=json --no-pager", timeout=60, max_output=1 << 18
        )
        now, _, listed = done.text.partition("\n")
        entries = json.loads(listed)
        due = []
        for entry in entries:
            unit, when = entry.get("unit"), entry.get("next")
            if isinstance(unit, str) and isinstance(when, int) and when:
                seconds = when / 1e6 - int(now)
                if 0 <= seconds <= 2 * watch.window_s:
                    due.append((seconds, one_line(unit, 100)))
        return tuple(f"{unit} in {seconds:.0f} s" for seconds, unit in sorted(due)[:50])
    except (GuestError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


_TUNNELS = r"""
for i in /sys/class/net/*; do
[ -e "$i" ] || continue
t=$(cat "$i/type" 2>/dev/null); k=$(sed -n 's/^DEVTYPE=//p' "$i/uevent" 2>/dev/null)
[ -e "$i/tun_flags" ] && k=tun
printf '%s %s %s\n' "${i##*/}" "${t:-0}" "${k:-none}"
done
"""
# linux/if_arp.h: ppp, ipip, ip6tnl, sit, gre, ip6gre, and none, which tun and WireGuard have.
_TUNNEL_TYPES = frozenset({"512", "768", "769", "776", "778", "823", "65534"})
_TUNNEL_KINDS = frozenset({"wireguard", "tun", "vxlan", "geneve"})
# Made by the kernel itself as soon as a module is loaded, and down.
_FALLBACKS = frozenset({"tunl0", "ip6tnl0", "sit0", "gre0", "ip6gre0"})


def tunnels(shell: GuestShell) -> list[str]:
    """The guest's network interfaces that lead into a tunnel: what goes in there is not seen on the wire.

    :raise ChannelError: the guest does not say which interfaces it has.
    """
    text = shell.run(_TUNNELS, timeout=60, max_output=1 << 16).check().text
    rows = [line.split() for line in text.splitlines()]
    if not any(row[:1] == ["lo"] for row in rows):
        raise ChannelError("the guest does not say which network interfaces it has")
    return [
        one_line(row[0], 40)
        for row in rows
        if len(row) == 3 and row[0] not in _FALLBACKS and (row[1] in _TUNNEL_TYPES or row[2] in _TUNNEL_KINDS)
    ]


def _plant(watch: Watch, moment: Moment) -> None:
    canary = Canary(moment, str(watch.machine.spec.channel))
    watch.planted.append(plant(watch.machine.shell, canary, names=watch.names))
    watch.probed[moment] = _probe(watch)


def _probe(watch: Watch) -> bool:
    """Whether the guest answers on every card when it is asked over the link for an address that it has used."""
    links = watch.machine.sinkholes
    asked = [link.probe() for link in links]
    pause = threading.Event()
    deadline = time.monotonic() + PROBE_S
    while time.monotonic() < deadline:
        answers = [set(link.stats()["answered"]) for link in links]
        if all(answered & set(wanted) for answered, wanted in zip(answers, asked, strict=True)):
            return True
        pause.wait(POLL_S / 10 if watch.skipping else POLL_S)
    return False


class _Tail:
    """New lines of an event log."""

    def __init__(self, path: Path, owners: dict[tuple[str, int], str]) -> None:
        self._path = path
        self.owners = owners
        self._at = 0
        self.asked = 0

    def news(self) -> list[dict[str, object]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(1 << 20)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def _attribute(watch: Watch) -> None:
    """Ask for the owners of sockets as soon as there is news of somebody out there."""
    nonce = str(watch.machine.spec.channel)
    for tail in watch.tails:
        news = [
            event
            for event in tail.news()
            if event.get("event") in _CONTACTS
            and nonce not in str(event.get("query", ""))
            and not str(event.get("dst", "")).startswith("192.0.2.10")
        ]
        if news and tail.asked < MAX_ASKED and watch.machine.shell.is_open:
            tail.asked += 1
            for key, owner in socket_owners(watch.machine.shell).items():
                tail.owners.setdefault(key, owner)


def _too_much(watch: Watch) -> bool:
    try:
        return any(path.stat().st_size > MAX_CAPTURE for path in watch.machine.captures)
    except OSError:
        return False


def _look(watch: Watch, elapsed: float) -> int:
    """Judge what was captured so far; how many violations."""
    try:
        if any(path.stat().st_size > MAX_LOOK for path in watch.machine.captures):
            return 0
        seen = _observation(watch, final=False, powered_off=True)
    except (OSError, OsgatesError):
        return 0
    count = watch.violations(seen)
    packets = sum(card.captured_out + card.captured_in for card in seen.cards)
    _step(watch, "idle", elapsed, watch.window_s, packets=packets, flows=len(seen.flows), violations=count)
    return count


def _power_off(watch: Watch) -> bool:
    _step(watch, "powering off", 0.0, POWER_OFF_S)
    try:
        return watch.machine.power_off(POWER_OFF_S)
    except HostError:
        return False


def _observation(watch: Watch, *, final: bool, powered_off: bool) -> TelemetryObservation:
    machine = watch.machine
    cards = []
    for index, link in enumerate(machine.sinkholes):
        stats, trouble = None, ""
        try:
            stats = link.stop() if final else link.stats()
        except (HostError, ValueError) as error:
            trouble = one_line(str(error), 300)
        capture = machine.captures[index]
        if final and _dump_failed(machine.records / "qemu.log"):
            trouble = "; ".join(
                filter(None, (trouble, "QEMU could not write the capture and stopped it (disk full?)"))
            )
        cards.append(
            Card(
                index=index,
                mac=card_mac(index),
                settings=link.settings,
                capture=capture,
                events=link.events,
                name=f"machines/{machine.records.name}/{capture.name}",
                stats=stats,
                trouble=trouble,
                owners=watch.owners[index] if index < len(watch.owners) else {},
            )
        )
        if link.settings.vpn is not None:
            cards.append(_inside(cards[-1], machine, link))
    nonce = str(machine.spec.channel)
    logs = [machine.records / "journal.log"] if final else []
    journal = Journal.read(logs, Injection(nonce).units)
    built = build(cards, watch.planted, watch.probed, machine.power_on_at, journal)
    return TelemetryObservation(
        state=watch.state,
        timing=Timing(
            mode="accelerated" if watch.skipping else "real",
            idle_s=built.idle_s,
            wanted_s=watch.window_s,
            boot_s=built.boot_s,
            warp=round(watch.warp, 1),
            latency_s=built.latency,
        ),
        cards=tuple(built.cards),
        flows=tuple(built.flows),
        queries=tuple(built.queries),
        facts=tuple(built.facts),
        canaries=tuple(built.canaries),
        powered_off=powered_off,
        stopped_early=watch.stopped_early,
        timers=watch.timers,
        tunnels=tuple(watch.tunnels),
        vpn=tuple(built.vpn),
        resolver=tuple(built.resolver),
        tls=_tls(machine.sinkholes),
        unvalidated=tuple(built.unvalidated),
    )


def _tls(links: Sequence[SinkholeLink]) -> str:
    """What TLS clients met on every card."""
    return " and ".join(sorted({link.settings.tls.value for link in links}))


def _inside(outer: Card, machine: Machine, link: SinkholeLink) -> Card:
    """What stands for the inside of the tunnel on a card; the sinkhole itself wrote its capture."""
    told = None if outer.stats is None else outer.stats["vpn"]
    return Card(
        index=TUNNELS + outer.index,
        mac=outer.mac,
        settings=outer.settings,
        capture=link.tunnel_capture,
        events=link.tunnel_events,
        name=f"machines/{machine.records.name}/{link.tunnel_capture.name}",
        stats=None if told is None else told["inside"],
        trouble="" if told is None else str(told["capture_failure"]),
        owners=outer.owners,
        tunnel=True,
    )


def _dump_failed(log: Path) -> bool:
    """Whether QEMU said that a capture ended (net/dump.c: ``network dump write error - stopping dump``)."""
    try:
        return b"stopping dump" in log.read_bytes()[-(1 << 20) :]
    except OSError:
        return False


__all__ = ["Watch", "observe", "settings_for"]
