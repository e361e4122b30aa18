"""Values that rules compare with: ports, addresses, IP protocols by name or number, words. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

# Of a set: its element for whatever no other one is for.
ALL = "*"
_PORT = re.compile(r"[0-9]{1,5}")
_WORD = re.compile(r"(?![0-9]+$)(?!0x)[a-z0-9_.]{1,40}")
# IP protocols (IANA, protocol-numbers), by the names of /etc/protocols, with which rules are listed.
_PROTOCOLS = {
    "hopopt": 0,
    "icmp": 1,
    "igmp": 2,
    "ggp": 3,
    "ipencap": 4,
    "st": 5,
    "tcp": 6,
    "egp": 8,
    "igp": 9,
    "pup": 12,
    "udp": 17,
    "hmp": 20,
    "xns-idp": 22,
    "rdp": 27,
    "iso-tp4": 29,
    "dccp": 33,
    "xtp": 36,
    "ddp": 37,
    "idpr-cmtp": 38,
    "ipv6": 41,
    "ipv6-route": 43,
    "ipv6-frag": 44,
    "idrp": 45,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "skip": 57,
    "icmpv6": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "rspf": 73,
    "vmtp": 81,
    "eigrp": 88,
    "ospf": 89,
    "ax.25": 93,
    "ipip": 94,
    "etherip": 97,
    "encap": 98,
    "pim": 103,
    "ipcomp": 108,
    "vrrp": 112,
    "l2tp": 115,
    "isis": 124,
    "sctp": 132,
    "fc": 133,
    "mobility-header": 135,
    "udplite": 136,
    "mpls-in-ip": 137,
    "manet": 138,
    "hip": 139,
    "shim6": 140,
    "wesp": 141,
    "rohc": 142,
    "ethernet": 143,
}
_ALIASES = {"ip": 0, "ipv6-icmp": 58, "ospfigp": 89, "ospfv3": 89, "mh": 135, "ipv4": 4, "carp": 112}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}
# Headers that whoever sends may put between IPv6's and that of the protocol; the kernel walks over them.
EXTENSIONS = (0, 43, 44, 60)


def protocol_name(number: int) -> str:
    """Its name, or its number."""
    return _NAMES.get(number, str(number))


def protocol_number(name: str) -> int | None:
    """By a name or a number; None: nobody knows."""
    if name.isascii() and name.isdigit() and len(name) <= 3:
        return int(name) if int(name) < 256 else None
    return _PROTOCOLS.get(name, _ALIASES.get(name))


def protocol_ends(value: str) -> tuple[int, int] | None:
    """First and last of one, a range (names have dashes, too) or a network of numbers; None: not understood."""
    one = protocol_number(value)
    if one is not None:
        return one, one
    network, _, length = value.partition("/")
    first = protocol_number(network)
    if length:
        if first is None or not length.isascii() or not length.isdigit() or int(length[:3]) > 8:
            return None
        size = 1 << (8 - int(length))
        return first // size * size, first // size * size + size - 1
    for at in (at for at, sign in enumerate(value) if sign == "-"):
        low, high = protocol_number(value[:at]), protocol_number(value[at + 1 :])
        if low is not None and high is not None:
            return low, high
    return None


def has_protocol(values: tuple[str, ...], number: int) -> bool | None:
    """Whether it is among them; None: nobody knows."""
    return _among([(0, 255) if value == ALL else protocol_ends(value) for value in values], number)


def _among(ends: Iterable[tuple[int, int] | None], number: int) -> bool | None:
    unknown = False
    for one in ends:
        if one is None:
            unknown = True
        elif one[0] <= number <= one[1]:
            return True
    return None if unknown else False


def port_ends(value: str) -> tuple[int, int] | None:
    """First and last; None: not understood."""
    first, dash, last = value.partition("-")
    if not _PORT.fullmatch(first) or (dash and not _PORT.fullmatch(last)):
        return None
    return int(first), int(last or first)


def has_port(values: tuple[str, ...], port: int) -> bool | None:
    """Whether it is among them; None: nobody knows."""
    return _among(_port_ends(values), port)


@lru_cache(maxsize=1024)
def _port_ends(values: tuple[str, ...]) -> tuple[tuple[int, int] | None, ...]:
    """The same values are asked for many ports."""
    return tuple((0, 65535) if value == ALL else port_ends(value) for value in values)


@lru_cache(maxsize=16384)
def address_ends(value: str) -> tuple[str, str] | None:
    """First and last of one, a network or a range; None: not understood."""
    first, _, last = value.partition("-")
    try:
        if last:
            return str(ipaddress.ip_address(first)), str(ipaddress.ip_address(last))
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
    return str(network[0]), str(network[-1])


def has_address(values: tuple[str, ...], address: str) -> bool | None:
    """Whether it is among them; None: nobody knows."""
    if ALL in values:
        return True
    own = ipaddress.ip_address(address)
    return _among((_address_numbers(value, own.version) for value in values), int(own))


@lru_cache(maxsize=16384)
def _address_numbers(value: str, version: int) -> tuple[int, int] | None:
    """Of the other family: none at all."""
    ends = address_ends(value)
    if ends is None:
        return None
    low, high = (ipaddress.ip_address(end) for end in ends)
    return (int(low), int(high)) if low.version == version == high.version else (1, 0)


def has_name(values: tuple[str, ...], name: str) -> bool:
    """Whether a card's name is among them; they may end with a star."""
    return any(name.startswith(value[:-1]) if value.endswith("*") else name == value for value in values)


def is_word(value: str) -> bool:
    """Neither a number nor a range, which nobody here can compare with a word."""
    return value == ALL or _WORD.fullmatch(value) is not None


def has_word(values: tuple[str, ...], word: str) -> bool | None:
    """Whether it is among them; None: nobody knows."""
    if ALL in values or word in values:
        return True
    return False if all(is_word(value) for value in values) else None
