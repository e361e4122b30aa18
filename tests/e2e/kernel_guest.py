"""This host's own kernel as a guest: in a network namespace, its card a tap device whose other end is the sinkhole.

Run by test_firewall_kernel.py as ``unshare --net --mount python -m tests.e2e.kernel_guest JSON``; writes what the
gate says. JSON: ``rules`` (a file for nft -f, or none), ``late_s`` (load it so much later), ``listen``, ``listen6``
(ports), ``boot_listen`` (ports that are closed before the rest begins), ``policy``, ``lose_every`` (the prober throws
frames away), ``swallow`` (the way to the card does).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

from pytest_osgates.checks.firewall import GATE, FirewallPolicy
from pytest_osgates.judging import judge
from pytest_osgates.model import State
from pytest_osgates.observers import firewall
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network.client import SinkholeLink

# linux/if_tun.h: TUNSETIFF; a tap without the extra header.
_TUNSETIFF, _TAP = 0x400454CA, 0x1002
CARD = "eth0"
WATCH_S = 4.0


class Shell:
    """Commands run here, in this namespace."""

    def run(self, command: str, **_: object) -> ShellResult:
        """As a guest's shell would."""
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60, check=False)
        return ShellResult(command, done.returncode, done.stdout, done.stderr)


def _program(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)


def _bridge(link: socket.socket, tap: int, swallow: int) -> None:
    """QEMU's place: frames behind their lengths on one side, one a read on the other. `swallow`: each n-th goes."""

    def inwards() -> None:
        left, count = b"", 0
        while data := link.recv(1 << 17):
            left += data
            while len(left) >= 4 and len(left) >= (end := 4 + int.from_bytes(left[:4], "big")):
                count += 1
                if not swallow or count % swallow:
                    os.write(tap, left[4:end])
                left = left[end:]

    def outwards() -> None:
        while frame := os.read(tap, 1 << 16):
            link.sendall(len(frame).to_bytes(4, "big") + frame)

    for direction in (inwards, outwards):
        threading.Thread(target=direction, daemon=True).start()


def _listen(ports: list[int], family: socket.AddressFamily = socket.AF_INET) -> list[socket.socket]:
    found = []
    for port in ports:
        sock = socket.socket(family)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        sock.listen()
        found.append(sock)
    return found


def main(asked: dict[str, Any]) -> None:
    """One observation, judged."""
    _program("mount", "-t", "sysfs", "sysfs", "/sys")
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", CARD.encode(), _TAP))
    policy = FirewallPolicy.model_validate(asked.get("policy", {"families": ["ipv4"]}))
    with tempfile.TemporaryDirectory() as directory:
        settings = firewall.settings_for(policy, asked.get("lose_every", 0))[0]
        link = SinkholeLink("net0", settings, Path(directory))
        _bridge(link.start(), tap, asked.get("swallow", 0))
        rules, late = asked.get("rules"), asked.get("late_s", 0)
        if rules and not late:
            _program("nft", "-f", rules)
        kept = _listen(asked.get("listen", [])) + _listen(asked.get("listen6", []), socket.AF_INET6)
        early = _listen(asked.get("boot_listen", []))
        if policy.families == ("ipv4",):
            Path(f"/proc/sys/net/ipv6/conf/{CARD}/disable_ipv6").write_text("1")
        _program("ip", "link", "set", "lo", "up")
        _program("ip", "link", "set", CARD, "up")
        _program("ip", "address", "add", "10.0.2.15/24", "dev", CARD)
        _program("ip", "route", "add", "default", "via", "10.0.2.2")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hello:
            hello.sendto(b"hello", ("10.0.2.3", 9))
        pause = threading.Event()
        pause.wait(late or WATCH_S)
        if rules and late:
            _program("nft", "-f", rules)
            pause.wait(1.0)
        for sock in early:
            sock.close()
        firewall.card_mac = lambda index: Path(f"/sys/class/net/{CARD}/address").read_text().strip()

        class Here:
            sinkholes = (link,)
            shell = cast("GuestShell", Shell())
            check = staticmethod(link.check)

        siege = firewall.Siege(
            cast("Machine", Here()), State.LIVE, policy, ProgressLog(Path(directory) / "p"), time.monotonic()
        )
        seen = firewall.observe(siege)
        judgement = judge(GATE, seen, policy)
        link.close()
    sys.stdout.write(
        json.dumps(
            {
                "verdict": judgement.verdict,
                "findings": [[one.severity, one.rule, one.subject] for one in judgement.findings],
                "controls": {one.name: one.caught for one in judgement.controls},
                "accounts": seen.accounts.model_dump(),
                "seconds": {one.name: one.seconds for one in seen.sweeps},
                "listened": len(kept),
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
