"""The words of a traffic analysis. Times are seconds since 1970, by the clock that stamped the capture."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_NOTES = 50


class Half:
    """One direction of one flow, while packets are counted. `mask`: TCP flags that need a closer look."""

    __slots__ = (
        *("again", "dport", "dst", "first", "frame", "head", "key", "last", "looks", "mac", "mask", "next", "octets"),
        *("macs", "packets", "past", "protocol", "seen", "slow", "sport", "src", "to"),
    )

    def __init__(self, protocol: int, src: bytes, dst: bytes, sport: int, dport: int) -> None:
        self.protocol = protocol
        self.src, self.dst, self.sport, self.dport = src, dst, sport, dport
        # `slow`: how many of the packets were looked at more closely.
        self.packets = self.octets = self.slow = 0
        self.first = self.last = 0.0
        self.frame = 0
        self.mac = self.to = b""
        # Other cards that sent packets of this direction, by whose addresses it cannot be told whose it is.
        self.macs: tuple[bytes, ...] = ()
        self.mask = 7 if protocol == 6 else 0
        self.looks = 0
        # TCP: the sequence number that comes next, and what was said so far; None once it is known what it is.
        self.next: int | None = None
        # How many bytes were sent again.
        self.again = 0
        self.head: bytes | None = b""
        # Packets before each boundary between phases.
        self.past: list[int] = []
        self.key: tuple[int, bytes, bytes, int, int] = (protocol, src, dst, sport, dport)
        self.seen = Seen()


@dataclass(slots=True)
class Seen:
    """What one direction of a flow told. ``names``: each with how it is known (sni, host, quic)."""

    applications: dict[str, None] = field(default_factory=dict)
    names: dict[tuple[str, str], None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    initiator: bool | None = None
    full: bool = False

    def note(self, text: str) -> None:
        """Remember a remark once."""
        if len(self.notes) < MAX_NOTES:
            self.notes.setdefault(text)

    def name(self, name: str, how: str) -> None:
        """Remember a name once; `full` where there were more than are remembered."""
        if not name or (name, how) in self.names:
            return
        if len(self.names) < MAX_NOTES:
            self.names[name, how] = None
        else:
            self.full = True


@dataclass(frozen=True)
class Flow:
    """Who talked with whom. ``out`` is from whoever began. ``phases``: packets in each phase, both directions.

    ``disputed``: packets of one direction came from several cards, the outside's among them.
    """

    protocol: str
    src: str
    dst: str
    sport: int
    dport: int
    source_mac: str
    target_mac: str
    first: float
    last: float
    frame: int
    packets_out: int
    packets_in: int
    octets_out: int
    octets_in: int
    applications: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    phases: tuple[int, ...]
    disputed: bool = False


@dataclass
class Query:
    """A name that was asked for. ``aliases``: CNAMEs that the answers gave for it."""

    name: str
    kind: str
    src: str
    server: str
    transport: str
    first: float
    last: float
    frame: int
    count: int = 1
    aliases: dict[str, None] = field(default_factory=dict)
    phases: dict[int, int] = field(default_factory=dict)


@dataclass
class LinkFact:
    """Something that was told on the link and is no flow to anyone: DHCP, ARP, neighbour discovery, mDNS, a VLAN tag.

    ``details``: what it told of the machine, by name.
    """

    kind: str
    src: str
    details: dict[str, str]
    first: float
    frame: int
    count: int = 1


@dataclass(frozen=True)
class Traffic:
    """A whole capture. ``problem``: why it ends before its end, or what did not fit; empty if all was read.

    ``frames_from``: frames by the MAC address that sent them, as far as the flows tell; ``unparsed``: packets that
    could not be read, with the reasons of the first ones. ``overflow``: what was left out because there was too much.
    ``latency``: in each phase the longest time from a question (DNS, ARP, SYN) to its answer; None: nothing was
    answered.
    """

    packets: int
    octets: int
    first: float
    last: float
    flows: tuple[Flow, ...]
    queries: tuple[Query, ...]
    facts: tuple[LinkFact, ...]
    unparsed: int
    unparsed_examples: tuple[str, ...]
    overflow: str
    problem: str
    from_macs: dict[str, int]
    latency: tuple[float | None, ...] = (None,)
