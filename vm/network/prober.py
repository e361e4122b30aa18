"""The prober: tries from outside what a guest answers, as fast as the guest takes it, and knows what it took.

Nothing is lost on the way into the guest: QEMU reads the socket only while the card has room (net/stream.c,
`virtio_net_receive`), and the guest's driver takes frames in their order. So behind each batch of probes goes a
marker, a question for a hardware address (ARP, neighbour solicitation), that hosts answer whatever their firewall
says: its answer proves that the frames before it were taken. The next batches wait for such answers: that is
the rate. A batch whose marker stays without an answer though a later one has it was perhaps lost, and is sent again.
Where a guest answers no such question, batches wait until QEMU has taken everything, and the guest's own counters
have to prove the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_osgates.vm.network import arp, icmpv6, probe_frames, probes, wire
from pytest_osgates.vm.network.probe_frames import CLOSED, OPEN, SILENT, UNASKED, UNPROVEN, Heard
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.network.sweeps import STEP, Sweep, ordered, source_for
from pytest_osgates.vm.network.wire import Malformed

if TYPE_CHECKING:
    from pytest_osgates.vm.network.sinkhole import Sinkhole

BATCH = 128
WINDOW = 6
MARKERS = 32
# Seconds: until a marker is repeated, how often, and how long late answers are waited for: a resolver that reaches
# nobody says so after five seconds or more (resolv.conf(5), timeout).
STALL_S, STALLS = 2.0, 6
GREET_S = 3.0
LINGER_S = {"tcp": 1.0, "udp": 12.0, "kinds": 12.0}
TRIES = 3
MOST_AGAIN = 4096
# Of the light probe: a group that got no answer is given up after this.
WATCH_S = 0.5
LISTED = 4
# Of a guest that renews everything on its way up: link-local, global and temporary addresses, each twice. What is
# beyond that is not watched, and told.
MAX_WATCHED, MAX_UNWATCHED = 12, 100
MAX_HEARD, MAX_SWEEPS, MAX_SECONDS = 2000, 48, 1200
# The last byte of an address: the light probe's two, sweeps, kinds, markers.
_WATCH, _SWEEPS, _KINDS, _MARKERS = 64, 66, 128, 192


@dataclass
class _Batch:
    marker: int
    items: list[int]
    sent_at: float


@dataclass
class _Watched:
    """One address of the guest under the light probe. Times are the host's clock."""

    mac: bytes
    learned: float
    alive: float = 0.0
    last: float = 0.0
    groups: int = 0
    proven: int = 0
    longest_gap: float = 0.0
    marker: int = -1
    sent_at: float = 0.0
    heard: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    # Probes that were taken, by whole seconds of the clock: others know when the machine was ready.
    seconds: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ear:
    """Whose an address of the prober is: a sweep's (or one kind's), the light probe's, or a marker's."""

    sweep: Sweep | None = None
    kind: int = -1
    watch: str = ""
    mac: bytes = b""


class Prober:
    """Of one sinkhole. `tick` sends what is due, `takes` hears the answers; neither waits. Times are monotonic."""

    def __init__(self, sink: Sinkhole, settings: Settings) -> None:
        self._sink = sink
        self._settings = settings
        self._probing = settings.probing
        self._ears: dict[bytes, _Ear] = {}
        self.sweeps: list[Sweep] = []
        self._queue: deque[Sweep] = deque()
        self._active: Sweep | None = None
        self._stage = ""
        self._since = 0.0
        self._begun = 0.0
        self._progress = 0.0
        self._stalls = 0
        self._make: Callable[[int], bytes] | None = None
        self._outstanding: deque[_Batch] = deque()
        self._next_marker = 0
        # By the marker's number: the sweep's own, of the address that it asked.
        self._asked: dict[int, bytes] = {}
        self._greeted: set[bytes] = set()
        self._marked = b""
        self.watched: dict[bytes, _Watched] = {}
        self.unwatched: dict[bytes, None] = {}
        self._watching = self._probing is not None and self._probing.canary_s > 0
        self._turn = 0
        self._due = 0.0
        self._listed = 0
        self._emitted = 0
        self.lost_on_purpose = 0
        self._now = self._quiet = 0.0

    # -- what the guest says of itself ----------------------------------------------------------------------------

    def learn(self, address: bytes, mac: bytes) -> None:
        """An address that the guest has, or is about to have."""
        first = address[0] if address else 0
        if not self._watching or address in self.watched:
            return
        if not address.strip(b"\0") or (first >= 224 if len(address) == 4 else first == 0xFF):
            return
        if len(self.watched) >= MAX_WATCHED:
            if len(self.unwatched) < MAX_UNWATCHED:
                self.unwatched[address] = None
            return
        self.watched[address] = _Watched(mac, self._now)
        for low, origin in ((_WATCH, "link"), (_WATCH + 1, "beyond")):
            if origin == "link" or address[:2] != b"\xfe\x80":
                self._own(source_for(address, origin, low), _Ear(watch=origin), low, origin)

    def owner(self, address: bytes) -> bytes | None:
        """The hardware address behind an address of the prober on the link; None: it is none."""
        ear = self._ears.get(address)
        return ear.mac if ear is not None and ear.mac else None

    def _own(self, address: bytes, ear: _Ear, low: int, origin: str) -> bytes:
        """Whom frames from `address` come from: a neighbour, or the gateway."""
        near = b"\x52\x55\x0a\x4e" + bytes((self._settings.subnet, low))
        self._ears[address] = _Ear(ear.sweep, ear.kind, ear.watch, near if origin == "link" else b"")
        return near if origin == "link" else self._settings.hardware

    # -- what is asked for ----------------------------------------------------------------------------------------

    def start(self, plan: Sequence[dict[str, Any]]) -> list[str]:
        """Begin sweeps, after those that are asked for already; their names. The light probe ends.

        Each: ``name``, ``protocol`` (tcp, udp, kinds), ``origin`` (link, beyond), ``target``, ``mac``, ``ports``; of
        kinds ``groups``: hardware addresses of groups that the card takes: what is for others never arrives.

        :raise ValueError: it cannot be done.
        """
        self._watching = False
        for asked in plan:
            target = wire.address_of(str(asked["target"]))
            mac = bytes.fromhex(str(asked["mac"]).replace(":", ""))
            protocol, origin = str(asked["protocol"]), str(asked["origin"])
            if not target or len(mac) != 6 or protocol not in LINGER_S or origin not in ("link", "beyond"):
                raise ValueError(f"no such sweep: {asked!r}")
            if len(self.sweeps) >= MAX_SWEEPS:
                raise ValueError(f"more than {MAX_SWEEPS} sweeps")
            low = _SWEEPS + len(self.sweeps)
            source = source_for(target, origin, low)
            sweep = Sweep(str(asked["name"]), protocol, origin, target, mac, b"", source, [])
            if protocol == "kinds":
                groups = asked.get("groups")
                taken = {b"", *(bytes.fromhex(str(group)) for group in groups or ())}
                kinds = enumerate(sweep.kinds)
                sweep.items = [number for number, kind in kinds if groups is None or kind.hardware in taken]
                for number in sweep.items:
                    own = source_for(target, origin, _KINDS + number)
                    sweep.link = mac + self._own(own, _Ear(sweep, number), _KINDS, origin)
            else:
                sweep.items = ordered(asked["ports"])
                sweep.link = mac + self._own(source, _Ear(sweep), low, origin)
                for port in sweep.items:
                    sweep.state[port] = SILENT
            self.sweeps.append(sweep)
            self._queue.append(sweep)
        return [sweep.name for sweep in self.sweeps]

    @property
    def running(self) -> bool:
        """Whether sweeps are not at their end, or late answers may still come."""
        return self._active is not None or bool(self._queue) or self._now < self._quiet

    def status(self) -> dict[str, object]:
        """Where it is."""
        active = self._active
        return {
            "running": self.running,
            "sweep": "" if active is None else active.name,
            "left": 0 if active is None else len(active.pending),
            "finished": sum(sweep.done for sweep in self.sweeps),
            "sweeps": len(self.sweeps),
            "lost_on_purpose": self.lost_on_purpose,
            "macs": [wire.mac_text(mac) for mac in dict.fromkeys(self._sink.guest_addresses.values())][:20],
            "unwatched": [wire.text_of(address) for address in self.unwatched],
            "watched": [
                {
                    "address": wire.text_of(address),
                    "learned": one.learned,
                    "alive": one.alive,
                    "last": one.last,
                    "groups": one.groups,
                    "proven": one.proven,
                    "seconds": list(one.seconds.items()),
                    "longest_gap": round(one.longest_gap, 3),
                    "heard": [[origin, port, state, at] for (origin, port), (state, at) in one.heard.items()],
                }
                for address, one in self.watched.items()
            ],
        }

    # -- sending --------------------------------------------------------------------------------------------------

    def wait(self) -> float:
        """Seconds until `tick` has something to do, if nothing comes before."""
        if self.running:
            return 0.01
        return max(0.0, self._due - self._now) if self._watching and self.watched else 0.2

    def tick(self, now: float, backlog: int) -> None:
        """Send what is due. `backlog`: bytes that QEMU has not taken yet."""
        self._now = now
        if self._active is None and self._queue:
            self._begin(self._queue.popleft())
        if self._active is not None:
            self._step(self._active, backlog)
        elif self._watching and self.watched:
            self._watch(backlog)

    def _emit(self, frames: list[bytes], sweep: Sweep | None = None) -> None:
        every = 0 if self._probing is None else self._probing.lose_every
        if sweep is not None:
            sweep.frames += len(frames)
        self._sink.tx_frames += len(frames)
        self._sink.tx_bytes += sum(map(len, frames)) - 4 * len(frames)
        if every:
            kept = []
            for frame in frames:
                self._emitted += 1
                if self._emitted % every:
                    kept.append(frame)
                else:
                    self.lost_on_purpose += 1
            frames = kept
        if frames:
            self._sink.out.append(b"".join(frames))

    def _marker(self, target: bytes, mac: bytes) -> tuple[int, bytes]:
        number = self._next_marker = (self._next_marker + 1) % MARKERS
        low = _MARKERS + number
        near = target if len(target) == 4 else b"\xfe\x80" + target[2:]
        if len(target) == 16:
            near = b"\xfe\x80" + bytes(6) + target[8:]
        source = source_for(near, "link", low)
        own = self._own(source, _Ear(watch=f"marker {number}"), low, "link")
        self._asked[number] = target
        return number, probe_frames.marker(mac, own, source, target)

    def _begin(self, sweep: Sweep) -> None:
        self._active = sweep
        self._stage, self._since, self._begun = "greet", self._now, self._now
        self._outstanding.clear()
        self._greeted.clear()
        self._stalls = 0
        sweep.pending.extend(sweep.items)
        self._make = probe_frames.syn(sweep.link, sweep.source, sweep.target) if sweep.protocol == "tcp" else None
        known = self._sink.guest_addresses.items()
        others = [address for address, mac in known if mac == sweep.mac and address != sweep.target][:7]
        # First it learns whom to answer: what waits for a hardware address is dropped beyond a few packets.
        near = self.owner(sweep.source)
        gateway = self._settings.gateway if len(sweep.target) == 4 else self._settings.link_local
        source, own = (sweep.source, near) if near is not None else (gateway, self._settings.hardware)
        hello = probe_frames.marker(sweep.mac, own, source, sweep.target)
        self._emit([hello, *(self._marker(address, sweep.mac)[1] for address in (sweep.target, *others))], sweep)

    def _step(self, sweep: Sweep, backlog: int) -> None:
        waited = self._now - self._since
        enough = sweep.target in self._greeted or waited > (GREET_S / 3 if self._greeted else GREET_S)
        if self._stage == "greet" and enough:
            sweep.blind = not self._greeted
            self._marked = sweep.target if sweep.target in self._greeted else next(iter(self._greeted), b"")
            self._stage, self._progress = "send", self._now
        if self._stage == "send":
            if sweep.blind:
                if backlog == 0 and sweep.pending:
                    self._batch(sweep)
            else:
                while sweep.pending and len(self._outstanding) < WINDOW:
                    self._batch(sweep)
                self._stalled(sweep)
            if not sweep.pending and not self._outstanding and backlog == 0 and not self._once_more(sweep):
                self._end(sweep)

    @staticmethod
    def _once_more(sweep: Sweep) -> bool:
        """Where ports answer that they are closed, one that says nothing may have been kept from it: ask it again."""
        if sweep.second or sweep.protocol != "tcp" or CLOSED not in sweep.state:
            return False
        sweep.second = True
        silent = [port for port in sweep.items if sweep.state[port] == SILENT]
        if len(silent) > MOST_AGAIN:
            # Not a few that were kept from it, but a filter.
            return False
        sweep.pending.extend(silent)
        sweep.repeated += len(silent)
        return bool(silent)

    def _batch(self, sweep: Sweep) -> None:
        """Some probes and a marker; without probes, a marker alone."""
        pending, take = sweep.pending, min(BATCH, len(sweep.pending))
        items = [pending.popleft() for _ in range(take)]
        if self._make is not None:
            frames = list(map(self._make, items))
        elif sweep.protocol == "udp":
            payloads = probes.payloads()
            frames = [
                probe_frames.datagram(sweep.link, sweep.source, sweep.target, port, payloads.get(port, b"osgates"))
                for port in items
            ]
        else:
            frames = [
                probe_frames.kind(
                    sweep.link,
                    source_for(sweep.target, sweep.origin, _KINDS + number),
                    sweep.target,
                    sweep.kinds[number],
                )
                for number in items
            ]
        if not sweep.blind:
            number, frame = self._marker(self._marked, sweep.mac)
            frames.append(frame)
            self._outstanding.append(_Batch(number, items, self._now))
        self._emit(frames, sweep)

    def _stalled(self, sweep: Sweep) -> None:
        if not self._outstanding or self._now - self._progress < STALL_S:
            return
        self._progress = self._now
        self._stalls += 1
        if self._stalls <= STALLS:
            number, frame = self._marker(self._marked, sweep.mac)
            self._outstanding.append(_Batch(number, [], self._now))
            self._emit([frame], sweep)
            return
        # It answers no more: whatever is silent from here on proves nothing.
        for batch in self._outstanding:
            self._give_up(sweep, batch.items)
        self._give_up(sweep, list(sweep.pending))
        self._outstanding.clear()
        sweep.pending.clear()

    @staticmethod
    def _give_up(sweep: Sweep, items: list[int]) -> None:
        for item in items:
            if sweep.protocol == "kinds":
                sweep.tries[item] = -1
            elif sweep.state[item] == SILENT:
                sweep.state[item] = UNPROVEN

    def _end(self, sweep: Sweep) -> None:
        # Answers of programs come late, and are heard while the next sweep is on its way.
        self._quiet = max(self._quiet, self._now + LINGER_S[sweep.protocol])
        sweep.seconds = self._now - self._begun
        sweep.done = True
        self._active = None

    def _watch(self, backlog: int) -> None:
        """One group of the light probe: ports that are listed, one that nobody would listen on, and a marker."""
        if self._now < self._due or self._probing is None:
            return
        self._due = self._now + self._probing.canary_s
        addresses = list(self.watched)
        self._turn += 1
        address = addresses[self._turn % len(addresses)]
        one = self.watched[address]
        # Frames do not heap up before a guest that does not take them.
        if backlog or (one.marker >= 0 and self._now - one.sent_at < WATCH_S):
            return
        ports = (*probes.watched(), *self._probing.boot_ports)
        origins = ("link",) if address[:2] == b"\xfe\x80" else ("link", "beyond")
        self._listed += 1
        origin = origins[(self._turn // len(addresses)) % len(origins)]
        source = source_for(address, origin, _WATCH if origin == "link" else _WATCH + 1)
        link = one.mac + (self._ears[source].mac or self._settings.hardware)
        make = probe_frames.syn(link, source, address)
        canary = 0x8000 | (self._listed * STEP & 0x7FFF)
        number, frame = self._marker(address, one.mac)
        one.marker, one.sent_at = number, self._now
        one.groups += 1
        begin = self._listed * LISTED
        listed = [make(ports[(begin + number) % len(ports)]) for number in range(LISTED)]
        self._emit([*listed, make(canary), frame])

    # -- hearing --------------------------------------------------------------------------------------------------

    def takes(self, frame: bytes) -> bool:
        """Whether a frame of the guest is an answer to the prober.

        :raise Malformed: it is, and cannot be read.
        """
        kind = frame[12:14]
        if kind == wire.ARP:
            return self._arp(frame)
        ear = self._ears.get(frame[30:34] if kind == wire.IPV4 else frame[38:54] if kind == wire.IPV6 else b"")
        if ear is None:
            return False
        try:
            heard = Heard(frame)
        except Malformed:
            # Fragments, too: whatever it was, it was sent to one who only asked.
            if ear.sweep is not None:
                ear.sweep.strange += 1
            raise
        if heard.protocol == wire.ICMPV6 and heard.payload[:1] in (b"\x87", b"\x88"):
            if heard.payload[0] == icmpv6.NEIGHBOUR_SOLICITATION:
                # The guest asks whose address it is: the sinkhole answers, with the hardware address of `owner`.
                return False
            if ear.watch.startswith("marker ") and len(heard.payload) >= 24:
                self._answered(int(ear.watch[7:]), heard.payload[8:24])
            return True
        if ear.sweep is not None:
            self._hear(ear.sweep, ear.kind, heard)
        elif ear.watch in ("link", "beyond"):
            self._hear_watched(ear.watch, heard)
        return True

    def _arp(self, frame: bytes) -> bool:
        packet = arp.parse(frame[14:])
        ear = self._ears.get(packet.target)
        if packet.operation != arp.REPLY or ear is None or not ear.watch.startswith("marker "):
            return False
        self._answered(int(ear.watch[7:]), packet.sender)
        return True

    def _answered(self, number: int, address: bytes) -> None:
        """The guest took everything that was sent before this marker."""
        if self._asked.get(number) != address:
            return
        one = self.watched.get(address)
        if self._active is None:
            if one is not None and one.marker == number:
                one.marker = -1
                one.proven += 1
                if int(self._now) in one.seconds or len(one.seconds) < MAX_SECONDS:
                    one.seconds[int(self._now)] = one.seconds.get(int(self._now), 0) + 1
                one.alive = one.alive or self._now
                one.longest_gap = max(one.longest_gap, self._now - one.last if one.last else 0.0)
                one.last = self._now
            return
        if self._stage == "greet":
            self._greeted.add(address)
            return
        if not any(batch.marker == number for batch in self._outstanding):
            return
        self._progress, self._stalls = self._now, 0
        while self._outstanding:
            batch = self._outstanding.popleft()
            if batch.marker == number:
                return
            self._again(self._active, batch.items)

    def _again(self, sweep: Sweep, items: list[int]) -> None:
        """Their marker has no answer, a later one has: they may be lost."""
        for item in items:
            if sweep.protocol == "kinds":
                if sweep.kinds[item].name in sweep.heard:
                    continue
            elif sweep.state[item] != SILENT:
                continue
            tries = sweep.tries[item] = sweep.tries.get(item, 1) + 1
            if tries > TRIES:
                self._give_up(sweep, [item])
            else:
                sweep.repeated += 1
                sweep.pending.append(item)

    def _hear(self, sweep: Sweep, kind: int, heard: Heard) -> None:
        if kind >= 0:
            self._hear_kind(sweep, sweep.kinds[kind], heard)
            return
        if heard.is_error:
            about = heard.error(sweep.target)
            if about is None or about[0] != (wire.TCP if sweep.protocol == "tcp" else wire.UDP):
                sweep.strange += 1
                return
            port, state = about[1:]
        elif heard.src != sweep.target and (sweep.protocol, heard.protocol) != ("udp", wire.UDP):
            # A program that answers a datagram may do so from another address of its host.
            sweep.strange += 1
            return
        elif sweep.protocol == "tcp" and heard.protocol == wire.TCP:
            found = heard.tcp()
            if found is None or not found[2]:
                sweep.strange += 1
                return
            port, state = found[:2]
            if state == OPEN:
                self._emit([probe_frames.reset(sweep.link, sweep.source, sweep.target, port)], sweep)
        elif sweep.protocol == "udp" and heard.protocol == wire.UDP and len(heard.payload) >= 8:
            port, state = int.from_bytes(heard.payload[:2], "big"), OPEN
            if sweep.state[port] == UNASKED:
                sweep.elsewhere[port] = sweep.elsewhere.get(port, 0) + 1
                return
        else:
            sweep.strange += 1
            return
        known = sweep.state[port]
        if known == UNASKED:
            sweep.strange += 1
        elif known in (SILENT, UNPROVEN) or (state == OPEN and known != OPEN):
            sweep.state[port] = state

    @staticmethod
    def _hear_kind(sweep: Sweep, kind: probes.Kind, heard: Heard) -> None:
        icmp = heard.protocol in (wire.ICMP, wire.ICMPV6)
        known = sweep.heard.get(kind.name, "error")
        if not heard.payload or (not icmp and heard.protocol != kind.protocol):
            sweep.strange += 1
        elif icmp and heard.is_error:
            code = heard.payload[1] if len(heard.payload) > 1 else 0
            sweep.heard.setdefault(kind.name, f"error {heard.payload[0]}/{code}")
        elif not icmp or heard.payload[0] in kind.answers:
            # One answers and another refuses: it is answered.
            if known.startswith("error"):
                sweep.heard[kind.name] = f"type {heard.payload[0]}" if icmp else f"protocol {heard.protocol}"
        else:
            sweep.strange += 1

    def _hear_watched(self, origin: str, heard: Heard) -> None:
        if heard.is_error:
            for address in self.watched:
                about = heard.error(address)
                if about is not None and about[0] == wire.TCP:
                    self._note(address, origin, about[1], about[2])
        elif heard.protocol == wire.TCP and heard.src in self.watched:
            found = heard.tcp()
            if found is not None and found[2]:
                self._note(heard.src, origin, found[0], found[1])
                if found[1] == OPEN:
                    link = self.watched[heard.src].mac + (self._ears[heard.dst].mac or self._settings.hardware)
                    self._emit([probe_frames.reset(link, heard.dst, heard.src, found[0])])

    def _note(self, address: bytes, origin: str, port: int, state: int) -> None:
        known = self.watched[address].heard
        before = known.get((origin, port))
        # A port that was closed, and is open later, was open; and many that are closed hide none.
        room = len(known) < (2 * MAX_HEARD if state == OPEN else MAX_HEARD)
        if (before is None and room) or (before and state == OPEN != before[0]):
            known[origin, port] = (state, self._now)
