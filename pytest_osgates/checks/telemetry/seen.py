"""What was seen on the wire and around it. Times: seconds after power-on, by the clock that stamped the capture."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from pytest_osgates.model import Model, Observation, State


class Phase(StrEnum):
    """Parts of the machine's life, judged apart. Idle is between the first canary and the last."""

    BOOT = "boot"
    IDLE = "idle"
    END = "shutdown"


# Indices of what stands for the inside of a tunnel begin here.
TUNNELS = 64
PHASES = (Phase.BOOT, Phase.IDLE, Phase.END)


# A note on flows of which packets came from the machine and from the outside, in the same direction.
DISPUTED = "sent by the machine as if by somebody else"


class Moment(StrEnum):
    """When canaries are planted."""

    START = "start"
    MIDDLE = "middle"
    END = "end"


class NameSeen(Model):
    """A name of a flow, and how it is known: dns, cname, sni, host, quic."""

    name: str
    how: str


class FlowSeen(Model):
    """Who talked with whom; ``out`` is from whoever began.

    ``card``: which network card; ``frame``: the number of its first packet in that card's capture. ``phases``:
    packets in each. ``from_guest``: the guest began. ``canary``: which of ours it is; empty if it is none.
    ``suspects``: units or processes. ``tunnel``: inside the declared VPN.
    """

    card: int = 0
    tunnel: bool = False
    protocol: str
    src: str
    dst: str
    sport: int = 0
    dport: int = 0
    from_guest: bool = True
    first: float
    last: float
    frame: int
    packets_out: int = 1
    packets_in: int = 0
    octets_out: int = 0
    octets_in: int = 0
    applications: tuple[str, ...] = ()
    names: tuple[NameSeen, ...] = ()
    notes: tuple[str, ...] = ()
    phases: dict[Phase, int] = Field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    canary: str = ""
    to_gateway: bool = True

    @property
    def service(self) -> str:
        """``tcp:443``, ``udp:123``, ``icmp``."""
        return f"{self.protocol}:{self.dport}" if self.protocol in {"tcp", "udp"} else self.protocol


class QuerySeen(Model):
    """A name that was asked for, and the server that was asked. ``transport``: udp, tcp, or, of the declared
    resolver, dot or doh; ``tunnel``: inside the declared VPN.
    """

    card: int = 0
    tunnel: bool = False
    name: str
    kind: str
    server: str
    transport: str = "udp"
    first: float
    last: float
    frame: int
    count: int = 1
    aliases: tuple[str, ...] = ()
    phases: dict[Phase, int] = Field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    canary: str = ""


class FactSeen(Model):
    """What was told on the link: DHCP, DHCPv6, ARP, mDNS, LLMNR, SSDP, a VLAN tag, an unknown EtherType."""

    card: int = 0
    kind: str
    mac: str
    details: dict[str, str]
    first: float
    frame: int
    count: int = 1


class CardSeen(Model):
    """One network card: its capture, and the sinkhole's own count of it.

    ``captured_out``, ``captured_in``: frames from and to the guest in the capture; ``counted_out``, ``counted_in``:
    by the sinkhole; None where it did not live to tell. ``problem``: of the capture; ``trouble``: of the sinkhole or
    its log. ``lease``: the address that was granted. ``link``: addresses of the gateway, the resolvers and the link
    itself; ``macs``: addresses that the guest sent from. ``tunnel``: what is inside a VPN that was played, as if it
    was a card; frames are IP packets there.
    """

    index: int = 0
    tunnel: bool = False
    mac: str
    capture: str
    captured_out: int
    captured_in: int
    counted_out: int | None
    counted_in: int | None
    unparsed: int = 0
    unparsed_examples: tuple[str, ...] = ()
    problem: str = ""
    trouble: str = ""
    lease: str = ""
    gateway_mac: str
    link: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """How findings call it."""
        return f"tunnel {self.index - TUNNELS}" if self.tunnel else f"card {self.index}"


class VpnSeen(Model):
    """The VPN peer that was played on one card. ``inside``: the index of the card that stands for its inside.

    ``addresses``: where it is dialled. ``handshakes``: that were completed; ``datagrams``: that came to the endpoint
    by the sinkhole's count, None where it did not tell; ``captured``: by the capture's. ``refused``: those that did
    not authenticate, by the reason.
    """

    card: int = 0
    inside: int
    endpoint: str
    guest_key: str
    addresses: tuple[str, ...]
    handshakes: int | None
    datagrams: int | None
    captured: int
    refused: dict[str, int] = Field(default_factory=dict)


class ResolverSeen(Model):
    """The encrypted resolver that was played on one card.

    ``addresses``: where it is asked. ``done``: TLS handshakes that were completed; ``queries``: by its own count;
    None where it did not tell; ``logged``: by the log. ``refused``: handshakes that the guest broke off, by the
    reason; ``foreign``: what came over TLS and was no query.
    """

    card: int = 0
    kind: str
    name: str
    addresses: tuple[str, ...]
    port: int
    done: int | None
    queries: int | None
    logged: int
    refused: dict[str, int] = Field(default_factory=dict)
    foreign: dict[str, int] = Field(default_factory=dict)


class CanarySeen(Model):
    """A sign of life of our own: planted in the guest from outside, and looked for in the capture.

    ``sent``: that the guest's programs said so; ``how``: which program. ``datagram``: it was captured;
    ``through_gateway``: addressed to the gateway; ``query``: the name was asked for on the wire; ``probe``: the guest
    answered a question that came over the link; ``resolved``: the name got an address, from the guest's own resolver.
    ``at``: when it was captured, None if never; ``clock``: seconds since 1970, the guest's own. ``tunnel``: the
    datagram went through the declared VPN; ``ways``: how the name was asked: ``udp``, ``dot``, ``tunnel udp``.
    """

    moment: Moment
    sent: bool
    how: str = ""
    why: str = ""
    at: float | None = None
    datagram: bool = False
    through_gateway: bool = False
    query: bool = False
    probe: bool = False
    resolved: bool = False
    clock: float | None = None
    tunnel: bool = False
    ways: tuple[str, ...] = ()


class Timing(Model):
    """How time passed. ``mode``: real or accelerated; ``idle_s``: between the first canary and the last;
    ``wanted_s``: what was asked for; ``warp``: guest seconds a second. ``latency_s``: the slowest answer of the
    sinkhole, in guest time.
    """

    mode: str = "real"
    idle_s: float
    wanted_s: float
    boot_s: float = 0.0
    warp: float = 1.0
    latency_s: float | None = None


class Unvalidated(Model):
    """A TLS connection that the guest went on with although nobody vouches for the server's certificate."""

    name: str
    address: str
    port: int


class TelemetryObservation(Observation):
    """Everything that left the machine from power-on to power-off, or tried to."""

    state: State
    timing: Timing
    cards: tuple[CardSeen, ...]
    flows: tuple[FlowSeen, ...]
    queries: tuple[QuerySeen, ...]
    facts: tuple[FactSeen, ...]
    canaries: tuple[CanarySeen, ...]
    powered_off: bool = True
    stopped_early: str = ""
    tunnels: tuple[str, ...] = ()
    timers: tuple[str, ...] | None = ()
    vpn: tuple[VpnSeen, ...] = ()
    resolver: tuple[ResolverSeen, ...] = ()
    tls: str = "alert"
    unvalidated: tuple[Unvalidated, ...] = ()

    @property
    def considered(self) -> int | None:
        # Frames that the guest sent: its canaries' at least.
        return sum(card.captured_out for card in self.cards if not card.tunnel)
