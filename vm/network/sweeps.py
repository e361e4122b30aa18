"""One pass of the prober over ports or protocols: from where, in which order, and what is known of it."""

from __future__ import annotations

import base64
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_osgates.vm.network import probes, wire

# A permutation of all ports: neighbours are far apart in time.
STEP = 40503

# Addresses on the internet (ICANN's own) in no list of documentation or private ranges, which filters drop by
# themselves. Nothing leaves the host.
_BEYOND4 = bytes((192, 0, 43))
_BEYOND6 = bytes.fromhex("2620000002d002000000000000000000")[:15]
_NEAR6 = b"\x4f\x53\0\0\0\0\0"


def source_for(target: bytes, origin: str, low: int) -> bytes:
    """An address beside `target` on its link, or one beyond the gateway."""
    if len(target) == 4:
        near = target[:3] + bytes((250 if low == target[3] else low,))
        return _BEYOND4 + bytes((low,)) if origin == "beyond" else near
    return _BEYOND6 + bytes((low,)) if origin == "beyond" else target[:8] + _NEAR6 + bytes((low,))


def ordered(ports: Sequence[int] | None) -> list[int]:
    """Those, or all 65,535, in an order in which neighbours are far apart."""
    wanted = None if ports is None else set(ports)
    every = ((number * STEP) & 0xFFFF for number in range(1 << 16))
    return [port for port in every if port and (wanted is None or port in wanted)]


@dataclass
class Sweep:
    """One pass over ports or kinds, from one address to another. `items`: ports, or numbers of kinds.

    `state`: by port; `heard`: by kind. `frames`: everything that was sent for it, markers too. `strange`: answers
    that fit no probe; `elsewhere`: ports that answered to a datagram that another one got.
    """

    name: str
    protocol: str
    origin: str
    target: bytes
    mac: bytes
    link: bytes
    source: bytes
    items: list[int]
    state: bytearray = field(default_factory=lambda: bytearray(b"\xff" * 65536))
    heard: dict[str, str] = field(default_factory=dict)
    pending: deque[int] = field(default_factory=deque)
    tries: dict[int, int] = field(default_factory=dict)
    frames: int = 0
    repeated: int = 0
    strange: int = 0
    elsewhere: dict[int, int] = field(default_factory=dict)
    blind: bool = False
    second: bool = False
    seconds: float = 0.0
    done: bool = False

    def result(self) -> dict[str, object]:
        """For the other process: `state` as one byte a port, zlib, base64."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "origin": self.origin,
            "target": wire.text_of(self.target),
            "source": wire.text_of(self.source),
            "asked": len(self.items),
            "frames": self.frames,
            "repeated": self.repeated,
            "strange": self.strange,
            "elsewhere": sorted(self.elsewhere)[:100],
            "paced": "link" if self.blind else "answers",
            "seconds": round(self.seconds, 3),
            "done": self.done,
            "state": "" if self.protocol == "kinds" else base64.b64encode(zlib.compress(self.state, 1)).decode(),
            "kinds": [self.kinds[item].name for item in self.items] if self.protocol == "kinds" else [],
            "unproven": [self.kinds[item].name for item in self.items if self.tries.get(item, 0) < 0]
            if self.protocol == "kinds"
            else [],
            "heard": dict(self.heard),
        }

    @property
    def kinds(self) -> tuple[probes.Kind, ...]:
        """Of the target's family."""
        return probes.kinds(4 if len(self.target) == 4 else 6)
