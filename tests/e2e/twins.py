"""Contacts at known times, planted in one image: a run in real time and its accelerated twin must see the same."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.vm.capture.pcap import PcapFile
from pytest_osgates.vm.network import dns

DOMAIN = "twin.example"
FIRST = f"start.{DOMAIN}"
# Seconds between two contacts of a program that sleeps, and of timers that count from when they last ran.
SLEEPS = (241,)
REPEATED = (607, 1811, 3607)
# Of a whole day no more than a machine has that idles: each contact starts a program, which takes most of a second of
# an emulated processor.
SPARSE_SLEEPS: tuple[int, ...] = ()
SPARSE_REPEATED = (3607,)
# Seconds after the first contact at which one more is made.
ONCE = (300, 1020, 1740, 5400, 43_200, 86_000)

# One datagram to the resolver a contact; nothing waits for what it says. With times behind it, the program first says
# that it starts, then starts what it is told, and stays: no program's start is between a time and its contact then.
# With `every` it stays as well: a loop that started a program each time would drift by what starting one takes, and
# change places with its neighbours.
SEND = r"""
use strict; use Socket; use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);
my ($name, $start, @times) = @ARGV;
socket(my $s, PF_INET, SOCK_DGRAM, 17) or die;
sub ask {
    my $labels = join('', map { pack('C/a*', $_) } split(/\./, $_[0]));
    my $query = pack('nnnnnn', 4711, 0x0100, 1, 0, 0, 0) . $labels . pack('Cnn', 0, 1, 1);
    send($s, $query, 0, sockaddr_in(53, inet_aton('10.0.2.3'))) or warn "$_[0]: $!";
}
my $begun = clock_gettime(CLOCK_MONOTONIC);
sub until_then { while ((my $left = $begun + $_[0] - clock_gettime(CLOCK_MONOTONIC)) > 0) { sleep($left); } }
if ($name eq 'every') {
    for (my $at = $start; ; $at += $start) { until_then($at); ask("sleep-$start.twin.example"); }
}
ask($name);
system($start) if defined $start;
for my $at (@times) { until_then($at); ask("once-$at.twin.example"); }
"""
_SHARE = "usr/share/osgates-fault"
_SEND = f"/usr/bin/perl /{_SHARE}/send.pl"
_SERVICE = "[Unit]\nDescription=Planted contact {name}\n\n[Service]\nType={kind}\n{work}\n"
_TIMER = "[Unit]\nDescription=Starts {name}\n\n[Timer]\n{when}\nAccuracySec=1us\n"


@dataclass(frozen=True)
class Contact:
    """A name asked for, seconds after the first contact by the clock of the capture."""

    name: str
    at: float


def plant(directory: Path, *, sparse: bool = False) -> Path:
    """A fault that makes the contacts; they begin when the network is up."""
    sleeps, steps = (SPARSE_SLEEPS, SPARSE_REPEATED) if sparse else (SLEEPS, REPEATED)
    units = directory / "tree/etc/systemd/system"
    (directory / "tree" / _SHARE).mkdir(parents=True)
    units.mkdir(parents=True)
    (directory / "tree" / _SHARE / "send.pl").write_text(SEND)
    loops = [f"{_SEND} every {step} &" for step in sleeps]
    (directory / "tree" / _SHARE / "loop.sh").write_text("".join(f"{loop}\n" for loop in loops))
    names = [f"repeated-{seconds}" for seconds in steps]
    for name, seconds in zip(names, steps, strict=True):
        work = f"ExecStart={_SEND} {name}.{DOMAIN}"
        when = f"OnActiveSec={seconds}s\nOnUnitActiveSec={seconds}s"
        (units / f"osgates-twin-{name}.service").write_text(_SERVICE.format(name=name, kind="oneshot", work=work))
        (units / f"osgates-twin-{name}.timer").write_text(_TIMER.format(name=name, when=when))
    timers = " ".join(f"osgates-twin-{name}.timer" for name in names)
    start = f"sh /{_SHARE}/loop.sh; systemctl start --no-block {timers}"
    # An address first: a datagram without one is lost, and the times of all others are told from it.
    ready = "until ip -4 -o addr show scope global | grep -q .; do sleep 1; done"
    (units / "osgates-twin.service").write_text(
        _SERVICE.format(
            name="start",
            kind="exec",
            work=f"ExecStartPre=/bin/sh -c '{ready}'\nExecStart={_SEND} {FIRST} '{start}' {' '.join(map(str, ONCE))}",
        )
    )
    # A job that waits would keep the boot from being done: a timer starts it.
    (units / "osgates-twin.timer").write_text(_TIMER.format(name="start", when="OnActiveSec=1s"))
    (directory / "fault.toml").write_text(
        'title = "Contacts at known times"\n'
        f'expects = {{ gate = "telemetry", rule = "contact", subject = "{FIRST}" }}\n\n'
        '[symlinks]\n"etc/systemd/system/multi-user.target.wants/osgates-twin.timer" = "../osgates-twin.timer"\n'
    )
    return directory


def expected(seconds: float, *, sparse: bool = False) -> list[Contact]:
    """What is planted in the first `seconds` after the first contact, in the order of time."""
    contacts = [Contact(FIRST, 0.0)]
    sleeps, repeated = (SPARSE_SLEEPS, SPARSE_REPEATED) if sparse else (SLEEPS, REPEATED)
    for kind, steps in (("sleep", sleeps), ("repeated", repeated)):
        for step in steps:
            contacts += [Contact(f"{kind}-{step}.{DOMAIN}", float(at)) for at in range(step, int(seconds) + 1, step)]
    contacts += [Contact(f"once-{at}.{DOMAIN}", float(at)) for at in ONCE if at <= seconds]
    return sorted(contacts, key=lambda contact: contact.at)


def contacts(capture: Path) -> list[Contact]:
    """What a capture holds of them."""
    found = []
    with PcapFile(capture) as file:
        for record in file.records():
            frame = record.frame
            if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 17:
                continue
            head = 14 + (frame[14] & 15) * 4
            if struct.unpack_from("!H", frame, head + 2)[0] != 53:
                continue
            name = dns.parse_question(frame[head + 8 :]).name
            if name.endswith("." + DOMAIN):
                found.append(Contact(name, record.at))
    begun = next(contact.at for contact in found if contact.name == FIRST)
    return [Contact(contact.name, contact.at - begun) for contact in found]


@dataclass(frozen=True)
class Compared:
    """Two runs. ``names``: whether each name was asked for as often in both. ``seconds``, ``share``: by how much the
    same contact's times differ at most, and of the time since the first one. ``swapped``: how many seconds those are
    apart, in the second run, that came in another order in the first."""

    names: bool
    seconds: float = 0.0
    share: float = 0.0
    swapped: tuple[float, ...] = ()


def compare(quick: list[Contact], real: list[Contact]) -> Compared:
    """Contacts of one name are told apart by their number."""
    sides: list[dict[tuple[str, int], float]] = []
    for seen in (quick, real):
        times: dict[tuple[str, int], float] = {}
        counts: Counter[str] = Counter()
        for contact in seen:
            times[contact.name, counts[contact.name]] = contact.at
            counts[contact.name] += 1
        sides.append(times)
    one, other = sides
    if one.keys() != other.keys():
        return Compared(names=False)
    order = sorted(other, key=lambda key: other[key])
    return Compared(
        names=True,
        seconds=max((abs(one[key] - other[key]) for key in other), default=0.0),
        share=max((abs(one[key] - other[key]) / other[key] for key in other if other[key]), default=0.0),
        swapped=tuple(
            other[later] - other[earlier]
            for place, earlier in enumerate(order)
            for later in order[place + 1 :]
            if one[later] < one[earlier]
        ),
    )


def window(evidence: Path) -> tuple[float, float]:
    """Seconds of the guest between first and last canary, and how many times as fast as real they went."""
    timing = json.loads((evidence / "observations/telemetry.json").read_text())["timing"]
    return float(timing["idle_s"]), float(timing["warp"])
