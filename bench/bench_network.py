"""How fast the sinkhole and the analysis of captures are. Run on a quiet machine:

    .venv/bin/python bench/bench_network.py            sinkhole, in its own process, over a socket pair
    .venv/bin/python bench/bench_network.py analysis   captures; the floor is reading every record's header
    .venv/bin/python bench/bench_network.py long       the same with ten million packets, and peak memory

Each figure is the best of several, next to the processor time that the sinkhole itself took: on a machine with other
work the second one says more. None lost: the sinkhole's own count is compared with what was sent.
"""

from __future__ import annotations

import argparse
import resource
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.network import dns, wire
from pytest_osgates.vm.network.client import SinkholeLink
from pytest_osgates.vm.network.settings import Settings

ROUNDS = 5
COUNT = 100_000
FAR = bytes((203, 0, 113, 7))
SETTINGS = Settings(max_log=1 << 30)
LINK = SETTINGS.hardware + bytes.fromhex("525400123456")


def framed(packet: bytes) -> bytes:
    """As QEMU's stream has it."""
    frame = wire.frame(LINK, packet)
    return len(frame).to_bytes(4, "big") + frame


def segment(seq: int, flags: int, data: bytes = b"", *, sport: int = 50000, dport: int = 4444) -> bytes:
    """One TCP segment."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, 0, 5 << 4, flags, 65535, 0, 0)
    body = wire.with_checksum(SETTINGS.guest, FAR, wire.TCP, head + data, 16)
    return wire.ip(SETTINGS.guest, FAR, wire.TCP, body)


def datagram(to: bytes, sport: int, dport: int, data: bytes) -> bytes:
    """One UDP datagram."""
    return wire.ip(SETTINGS.guest, to, wire.UDP, wire.udp(SETTINGS.guest, sport, to, dport, data))


def tcp_data(round_: int) -> list[bytes]:
    """A connection and its data, in full segments."""
    port = 50000 + round_
    data = bytes(1400)
    frames = [framed(segment(1000, 2, sport=port))]
    for number in range(COUNT - 1):
        frames.append(framed(segment(1001 + 1400 * number, 16, data, sport=port)))
    return frames


def udp_flood(round_: int) -> list[bytes]:
    """Datagrams of a thousand flows."""
    return [framed(datagram(FAR, 1000 + number % 1000, 9000 + round_, bytes(100))) for number in range(COUNT)]


def udp_new(round_: int) -> list[bytes]:
    """Datagrams, each a flow of its own: each is an event."""
    return [
        framed(datagram(FAR, 1 + number % 65000, 10000 + round_ * 2 + number // 65000, bytes(40)))
        for number in range(COUNT)
    ]


def dns_queries(round_: int) -> list[bytes]:
    """Queries for a thousand names: each is answered and logged."""
    return [
        framed(
            datagram(
                SETTINGS.resolver, 20000 + number % 999, 53, dns.query(f"h{number % 1000}.r{round_}.example.com")
            )
        )
        for number in range(COUNT)
    ]


def sinkhole(make: Callable[[int], list[bytes]]) -> tuple[float, float]:
    """Frames a second by the clock, and by the sinkhole's processor time; the best round."""
    best = (0.0, 0.0)
    for round_ in range(ROUNDS):
        frames = make(round_)
        data = b"".join(frames)
        with tempfile.TemporaryDirectory() as directory:
            link = SinkholeLink("net0", SETTINGS, Path(directory))
            qemu = link.start()
            drain = threading.Thread(target=_drain, args=(qemu,), daemon=True)
            drain.start()
            before = link.stats()["cpu_s"]
            begun = time.perf_counter()
            qemu.sendall(data)
            while True:
                stats = link.stats()
                if stats["rx_frames"] >= len(frames):
                    break
            took = time.perf_counter() - begun
            assert stats["rx_frames"] == len(frames)
            assert stats["answers_dropped"] == 0
            best = max(best, (len(frames) / took, len(frames) / (stats["cpu_s"] - before)))
            link.close()
            qemu.close()
    return best


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 18):
            continue
    except OSError:
        return


def capture(path: Path, count: int) -> None:
    """`count` packets: a hundred connections, both directions, one query in ten thousand."""
    head = struct.Struct("<IIII")
    data = [segment(1100, 16, bytes(80), sport=40000 + number, dport=443)[0:] for number in range(100)]
    plain = [LINK + packet for packet in data]
    query = LINK + datagram(SETTINGS.resolver, 5353, 53, dns.query("www.example.com"))
    with path.open("wb", buffering=1 << 20) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for number in range(count):
            if number < 200:
                port = 40000 + number // 2
                frame = LINK + (
                    segment(1000, 2, sport=port, dport=443)
                    if number % 2 == 0
                    else segment(1001, 16, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".ljust(99), sport=port, dport=443)
                )
            else:
                frame = query if number % 10_000 == 0 else plain[number % 100]
            file.write(
                head.pack(1_700_000_000 + number // 10_000, number % 10_000 * 100, len(frame), len(frame)) + frame
            )


def _floor(path: Path) -> Iterator[int]:
    unpack = struct.Struct("<IIII").unpack_from
    data = path.read_bytes()
    at, end, number = 24, len(data), 0
    while at < end:
        _, _, size, _ = unpack(data, at)
        at += 16 + size
        number += 1
    yield number


def analysis(count: int, rounds: int) -> None:
    """Packets a second by the clock and by processor time, the floor, and the peak of memory."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x.pcap"
        capture(path, count)
        wall = cpu = floor = 0.0
        for _ in range(rounds):
            begun, used = time.perf_counter(), time.process_time()
            seen = analyse(path)
            wall = max(wall, seen.packets / (time.perf_counter() - begun))
            cpu = max(cpu, seen.packets / (time.process_time() - used))
            assert (seen.packets, seen.unparsed, seen.problem) == (count, 0, "")
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            if count <= 1_000_000:
                used = time.process_time()
                (number,) = _floor(path)
                floor = max(floor, number / (time.process_time() - used))
        print(f"{'analysis, packets a second':<44} {wall:12,.0f}   processor time: {cpu:12,.0f}   peak {peak} MB")
        if floor:
            print(f"{'floor: every header, processor time':<44} {floor:12,.0f}   ratio {floor / cpu:.2f}")


def main(what: str) -> None:
    """Print the figures."""
    if what == "analysis":
        analysis(1_000_000, ROUNDS)
    elif what == "long":
        analysis(10_000_000, 1)
    else:
        for name, make, wanted in (
            ("TCP data", tcp_data, 200_000),
            ("UDP, a thousand flows", udp_flood, 80_000),
            ("UDP, each a flow of its own", udp_new, 80_000),
            ("DNS, answered and logged", dns_queries, 30_000),
        ):
            wall, cpu = sinkhole(make)
            print(
                f"{name + ', frames a second':<44} {wall:12,.0f}   processor time: {cpu:12,.0f}   wanted {wanted:,}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("sinkhole", "analysis", "long"), default="sinkhole")
    main(parser.parse_args().what)
