"""From a capture to flows with names. Most packets only have to be counted; that is done here, the rest in `dissect`.

Memory does not grow with the length of the capture, only with the number of flows, which is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pytest_osgates.vm.capture.dissect import Dissector
from pytest_osgates.vm.capture.flows import MAX_NOTES, Flow, Half, Traffic
from pytest_osgates.vm.capture.pcap import ETHERNET, MAX_PACKET, PcapFile
from pytest_osgates.vm.network.wire import ICMP, ICMPV6, PROTOCOLS, TCP, mac_text, text_of

# A pcap record's header, then an Ethernet frame with IPv4 without options: EtherType and first byte together,
# fragment bits, protocol, addresses and ports together, TCP's flags.
_LAYOUT = "IIII12x3s5x2sxB2x12s9xB"
_NEED = 48
_PLAIN = b"\x08\x00\x45"
_WHOLE = frozenset({b"\0\0", b"\x40\0"})
_NEVER = 1 << 62
_PING = {"ping": None}
DNS_PORT = 53


class Analysis:
    """Counts one capture. `boundaries`: times (s) at which a new phase begins; phase 0 is before the first.

    `outside`: the MAC address of all that is not the machine, where that is known. Then it is never taken for whoever
    began a flow in which the machine said something, and only its answers say whose an address is.
    """

    def __init__(self, boundaries: Sequence[float] = (), outside: str = "") -> None:
        self._boundaries = list(boundaries)
        self._outside = bytes.fromhex(outside.replace(":", ""))
        self._dissector = Dissector(self._outside)
        self._packets = self._octets = 0
        self._first = self._last = 0.0

    def run(self, path: Path) -> Traffic:
        """Read all of `path`.

        :raise CaptureError: not even its header can be read; what is wrong later on is in `Traffic.problem`.
        """
        with PcapFile(path) as file:
            if file.pcapng or file.link_type != ETHERNET:
                for record in file.records():
                    self._record(record.frame, record.at, record.size)
            else:
                self._fast(file)
            return self._result(file.problem)

    def _record(self, frame: bytes, at: float, size: int) -> None:
        if not self._packets:
            self._first = at
        while self._boundaries and at >= self._boundaries[0]:
            self._next_phase()
        self._packets += 1
        self._octets += size
        self._last = at
        self._dissector.frame(frame, at, self._packets, size)

    def _next_phase(self) -> None:
        self._boundaries.pop(0)
        self._dissector.phase += 1
        for half in self._dissector.halves.values():
            half.past.append(half.packets)

    def _fast(self, file: PcapFile) -> None:
        layout = struct.Struct(file.order + _LAYOUT)
        unpack, need, units = layout.unpack_from, layout.size, file.units
        head = struct.Struct(f"{file.order}IIII").unpack_from
        bulk = self._dissector.bulk.get
        plain, whole = _PLAIN, _WHOLE
        number, octets, left = 0, 0, b""
        # Whole seconds are compared in the loop; the exact time only where a boundary is near.
        edge = int(self._boundaries[0]) if self._boundaries else _NEVER
        for chunk in file.chunks():
            data = left + chunk if left else chunk
            at, end = 0, len(data)
            while end - at >= need:
                seconds, parts, size, original, kind, part, protocol, ends, flags = unpack(data, at)
                after = at + 16 + size
                if after > end:
                    break
                half = bulk(ends)
                if (
                    half is not None
                    and kind == plain
                    and protocol == half.protocol
                    and not flags & half.mask
                    and part in whole
                    and size >= _NEED
                    and seconds < edge
                ):
                    number += 1
                    half.packets += 1
                    half.octets += original
                    octets += original
                    half.last = seconds + parts / units
                    at = after
                    continue
                self._packets, self._octets = number, octets
                self._record(data[at + 16 : after], seconds + parts / units, original)
                number, octets = self._packets, self._octets
                edge = int(self._boundaries[0]) if self._boundaries else _NEVER
                at = after
            while end - at >= 16:
                seconds, parts, size, original = head(data, at)
                if size > MAX_PACKET:
                    file.problem = f"is corrupt: packet {number + 1} is said to have {size} bytes"
                    break
                if at + 16 + size > end:
                    break
                self._packets, self._octets = number, octets
                self._record(data[at + 16 : at + 16 + size], seconds + parts / units, original)
                number, octets = self._packets, self._octets
                edge = int(self._boundaries[0]) if self._boundaries else _NEVER
                at += 16 + size
            left = data[at:]
            if file.problem:
                break
        self._packets, self._octets = number, octets
        if left and not file.problem:
            file.problem = f"is cut short after packet {number}"

    # -- result ---------------------------------------------------------------------------------------------------

    def _result(self, problem: str) -> Traffic:
        found = self._dissector
        while self._boundaries:
            self._next_phase()
        halves = list(found.halves.values())
        macs = dict(found.from_macs)
        overflow = found.overflow
        for half in halves:
            self._last = max(self._last, half.last)
            if half.seen.full:
                overflow = overflow or f"more than {MAX_NOTES} names in one flow"
            # Frames that were only counted belong to the sender of the flow's first one.
            if half.packets > half.slow:
                mac = mac_text(half.mac)
                macs[mac] = macs.get(mac, 0) + half.packets - half.slow
        flows = tuple(sorted(self._pairs(halves), key=lambda flow: (flow.first, flow.frame)))
        return Traffic(
            packets=self._packets,
            octets=self._octets,
            first=self._first,
            last=self._last,
            flows=flows,
            queries=tuple(sorted(found.queries.values(), key=lambda query: (query.first, query.frame))),
            facts=tuple(sorted(found.facts.values(), key=lambda fact: (fact.first, fact.frame))),
            unparsed=found.unparsed,
            unparsed_examples=tuple(found.examples),
            overflow=overflow,
            problem=problem,
            from_macs=macs,
            latency=tuple(found.latency.get(phase) for phase in range(found.phase + 1)),
        )

    def _pairs(self, halves: list[Half]) -> list[Flow]:
        flows, done = [], set()
        known = self._dissector.halves
        for half in halves:
            if half.key in done:
                continue
            protocol, src, dst, sport, dport = half.key
            other = known.get((protocol, dst, src, dport, sport)) if sport >= 0 else None
            if other is half or (other is not None and not self._belongs(half, other)):
                other = None
            done.add(half.key)
            if other is None:
                flows.append(self._flow(half, None))
                continue
            done.add(other.key)
            if self._begins(other, half):
                flows.append(self._flow(other, half))
            else:
                flows.append(self._flow(half, other))
        return flows

    def _belongs(self, one: Half, two: Half) -> bool:
        """Whether two directions are one flow: not where the machine sent both, which nobody answers.

        ICMP has no ports: only pings are answered, the rest stands alone.
        """
        if self._outside and (one.mac == self._outside) == (two.mac == self._outside):
            return False
        return one.protocol not in {ICMP, ICMPV6} or one.seen.applications == two.seen.applications == _PING

    def _begins(self, one: Half, two: Half) -> bool:
        """Whether `one` is from whoever began."""
        return two.mac == self._outside if self._outside else _begins(one, two)

    def _disputed(self, half: Half) -> bool:
        return bool(self._outside and half.macs) and self._outside in (half.mac, *half.macs)

    def _flow(self, out: Half, back: Half | None) -> Flow:
        sides = [out] if back is None else [out, back]
        for side in sides:
            if side.protocol == TCP and side.dport == DNS_PORT and side.head:
                side.seen.note(f"{len(side.head)} bytes that are no DNS query")
        names = dict(out.seen.names)
        for address in (text_of(out.dst),):
            for name, how in self._dissector.names.get(address, {}).items():
                names.setdefault((name, how))
        total = [0] * (self._dissector.phase + 1)
        for side in sides:
            marks = [*side.past, side.packets]
            before = 0
            for index, count in enumerate(marks):
                total[index] += count - before
                before = count
        return Flow(
            protocol=PROTOCOLS.get(out.protocol, f"ip-{out.protocol}"),
            src=text_of(out.src),
            dst=text_of(out.dst),
            sport=max(0, out.sport),
            dport=max(0, out.dport) if out.sport >= 0 else 0,
            source_mac=mac_text(out.mac),
            target_mac=mac_text(out.to),
            first=min(side.first for side in sides),
            last=max(side.last for side in sides),
            frame=min(side.frame for side in sides),
            packets_out=out.packets,
            packets_in=0 if back is None else back.packets,
            octets_out=out.octets,
            octets_in=0 if back is None else back.octets,
            applications=tuple(dict.fromkeys(app for side in sides for app in side.seen.applications)),
            names=tuple(names),
            notes=tuple(dict.fromkeys(note for side in sides for note in side.seen.notes)),
            phases=tuple(total),
            disputed=any(self._disputed(side) for side in sides),
        )


def _begins(one: Half, two: Half) -> bool:
    """Whether `one` is from whoever began: a SYN, a query or a greeting says so, else the first packet."""
    if one.seen.initiator == two.seen.initiator:
        return one.frame < two.frame
    return one.seen.initiator is True or two.seen.initiator is False


def analyse(path: Path, boundaries: Sequence[float] = (), outside: str = "") -> Traffic:
    """Everything that `path` tells; see `Analysis`.

    :raise CaptureError: not even its header can be read.
    """
    return Analysis(boundaries, outside).run(path)
