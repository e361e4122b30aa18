"""How fast the prober is. Run on a quiet machine:

    .venv/bin/python bench/bench_sweep.py           all TCP ports in both families, against a peer without a guest
    .venv/bin/python bench/bench_sweep.py 20000     the first so many ports only

The peer takes every frame at once, answers markers, and to each SYN says nothing (a filter), that the port is
closed, or that it is open: what is measured is the prober alone, in its own process, over a socket pair as QEMU has
it. None lost: both sides' counts are compared, and each port's state.
"""

from __future__ import annotations

import argparse
import base64
import collections
import socket
import tempfile
import threading
import time
import zlib
from pathlib import Path

from pytest_osgates.vm.network import arp, icmpv6, probe_frames, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.settings import Probing, Settings

ROUNDS = 3
MAC = bytes.fromhex("525400123456")
TARGETS = ("10.0.2.15", "2001:db8:2:0:5054:ff:fe12:3456")
# What a rate of 131,070 probes in 20 seconds is.
WANTED = 6554


class Peer(threading.Thread):
    """Takes frames as they come. `answer`: empty, or the TCP flags that each SYN gets."""

    def __init__(self, sock: socket.socket, answer: int) -> None:
        super().__init__(daemon=True)
        self._sock, self._answer = sock, answer
        self.frames = 0

    def run(self) -> None:
        """Until the other end is closed."""
        left = b""
        try:
            while data := self._sock.recv(1 << 17):
                left += data
                out, at = [], 0
                while len(left) - at >= 4:
                    end = at + 4 + int.from_bytes(left[at : at + 4], "big")
                    if end > len(left):
                        break
                    self.frames += 1
                    answer = self._one(left[at + 4 : end])
                    if answer:
                        out.append(len(answer).to_bytes(4, "big") + answer)
                    at = end
                left = left[at:]
                if out:
                    self._sock.sendall(b"".join(out))
        except OSError:
            return

    def _one(self, frame: bytes) -> bytes:
        link = frame[6:12] + MAC
        if frame[12:14] == wire.ARP:
            return wire.frame(link, arp.reply(arp.parse(frame[14:]), MAC))
        at = 34 if frame[12:14] == wire.IPV4 else 54
        if at == 54 and frame[20] == wire.ICMPV6:
            target, source = frame[62:78], frame[22:38]
            body = wire.with_checksum(target, source, wire.ICMPV6, icmpv6.neighbour_advertisement(target, MAC), 2)
            return wire.frame(link, wire.ip(target, source, wire.ICMPV6, body, 255))
        if not self._answer or not frame[at + 13] & 2:
            return b""
        src, dst = (frame[26:30], frame[30:34]) if at == 34 else (frame[22:38], frame[38:54])
        # Checksums are left out: the prober does not look at them, and they are not its time.
        head = frame[at + 2 : at + 4] + frame[at : at + 2] + bytes(4) + (probe_frames.SEQ + 1).to_bytes(4, "big")
        return wire.frame(link, wire.ip(dst, src, wire.TCP, head + b"\x50" + bytes((self._answer,)) + bytes(6)))


def sweep(answer: int, state: int, ports: int) -> tuple[float, float, int]:
    """Seconds by the clock and of the prober's processor time, and probes; both families, one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        link = SinkholeLink("net0", Settings(probing=Probing(canary_s=0.0)), Path(directory))
        qemu = link.start()
        peer = Peer(qemu, answer)
        peer.start()
        plan: list[dict[str, object]] = [
            {
                "name": f"tcp {target}",
                "protocol": "tcp",
                "origin": "link",
                "target": target,
                "mac": wire.mac_text(MAC),
                "ports": None if ports >= 65535 else list(range(1, ports + 1)),
            }
            for target in TARGETS
        ]
        before = link.stats()["cpu_s"]
        link.sweep(plan)
        while link.sweep_status()["running"]:
            time.sleep(0.02)
        used = link.stats()["cpu_s"] - before
        results = [link.sweep_result(index) for index in range(len(plan))]
        sent = link.stats()["tx_frames"]
        link.close()
        qemu.close()
        if peer.frames != sent:
            raise SystemExit(f"{sent} frames were sent, {peer.frames} arrived")
        for result in results:
            counts = collections.Counter(zlib.decompress(base64.b64decode(result["state"])))
            if counts[state] != ports or result["repeated"]:
                raise SystemExit(f"{result['name']}: {dict(counts)}, {result['repeated']} repeated")
        return sum(result["seconds"] for result in results), used, 2 * ports


def main(ports: int) -> None:
    """Print the figures; the best of several rounds."""
    for name, answer, state in (
        ("a filter: nothing answers", 0, probe_frames.SILENT),
        ("all ports closed", 0x14, probe_frames.CLOSED),
        ("all ports open", 0x12, probe_frames.OPEN),
    ):
        rounds = [sweep(answer, state, ports) for _ in range(ROUNDS)]
        took, used, probes = (min(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:<28} {probes:,} probes in {took:5.2f} s: {probes / took:9,.0f}/s   processor time {used:5.2f} s: "
            f"{probes / used:9,.0f}/s   wanted {WANTED:,}/s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ports", nargs="?", type=int, default=65535)
    main(max(1, min(65535, parser.parse_args().ports)))
