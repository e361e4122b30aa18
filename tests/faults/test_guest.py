"""What a guest does wrong before there is a Linux: made of a few bytes each, so that a boot takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Gates, Outcome
from tests.faults import bootsector
from tests.faults.table import Fault, check, proves

pytestmark = pytest.mark.boots

PROFILE = """
schema = 1
name = "faults"
[machine]
firmware = ["{firmware}"]
memory_mib = 256
cpus = 1
[boot]
ready_target = "multi-user.target"
[gate.boot]
deadline_s = {deadline}
watch_s = 0
[gate.kconfig]
"""


def judge(gates: Gates, iso: Path, *arguments: str, deadline: float = 15.0, firmware: str = "bios") -> Outcome:
    """Run the gates of the profile above."""
    profile = gates.directory / "faults.toml"
    profile.write_text(PROFILE.format(deadline=deadline, firmware=firmware))
    return gates.run("--iso", iso, "--iso-distro", profile, *(arguments or ("-m", "boot")))


def boots(gates: Gates, text: bytes, tail: str, *arguments: str, deadline: float = 15.0) -> Outcome:
    """Judge a guest that says `text` and goes on as `tail` says."""
    return judge(gates, bootsector.make_iso(gates.directory / "x.iso", text, tail), *arguments, deadline=deadline)


def serial(outcome: Outcome, row: str = "bios-channel") -> bytes:
    """The record of a row's serial console."""
    assert outcome.root is not None
    return (outcome.root / f"machines/{row}/serial.log").read_bytes()


@proves("hangs-in-boot-loader")
def test_a_boot_loader_that_hangs(fault: Fault, gates: Gates) -> None:
    outcome = boots(gates, b"Loading\r\n", "hangs")
    check(fault, outcome)
    assert outcome.root is not None
    assert (outcome.root / "machines/bios-channel/screen-last.png").is_file()
    assert b"Loading" in serial(outcome)


@pytest.mark.slow
@proves("boot-menu-for-ever")
def test_a_menu_that_heeds_no_key(fault: Fault, gates: Gates) -> None:
    menu = b"Choose:\r\n 1 Live system, to try it without installing anything\r\n 2 Installer\r\n 3 Rescue\r\n" * 3
    outcome = boots(gates, menu, "waits for keys", "-m", "boot", "-k", "bare", deadline=30)
    check(fault, outcome)
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/boot/bios-bare.json").read_text())
    assert seen["outcome"] == "timeout"


@pytest.mark.slow
@proves("never-leaves-the-firmware")
def test_a_firmware_that_finds_nothing(fault: Fault, gates: Gates) -> None:
    iso = bootsector.make_iso(gates.directory / "x.iso", b"Never seen\r\n", "hangs")
    outcome = judge(gates, iso, "-m", "boot", "-k", "bare", firmware="uefi", deadline=300)
    check(fault, outcome)
    assert outcome.root is not None
    assert (outcome.root / "machines/uefi-bare/screen-last.png").is_file()


@proves("reboots-in-a-loop")
def test_a_machine_that_resets_itself(fault: Fault, gates: Gates) -> None:
    """After the third reset nobody waits for the deadline."""
    check(fault, boots(gates, b"Rebooting\r\n", "reboots", deadline=600))


@proves("powers-off", "state-not-reached")
def test_a_machine_that_powers_itself_off(fault: Fault, gates: Gates) -> None:
    """It ends at once, not at the deadline."""
    gate = "kconfig" if fault.name == "state-not-reached" else "boot"
    outcome = boots(gates, b"Bye\r\n", "powers off", "-m", gate, deadline=600)
    check(fault, outcome)


@proves("panic-in-the-first-second")
def test_a_panic_in_the_first_second(fault: Fault, gates: Gates) -> None:
    outcome = boots(gates, b"Kernel panic - not syncing: made up\r\n", "hangs", deadline=600)
    check(fault, outcome)
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/boot/bios-bare.json").read_text())
    ended = max(json.loads(line)["elapsed"] for line in (outcome.root / "progress.jsonl").read_text().splitlines())
    panic = next(alarm for alarm in seen["alarms"] if alarm["name"] == "kernel-panic")
    assert ended - panic["at"] < 2.0


@pytest.mark.slow
@proves("serial-flood")
def test_a_flood_is_bounded(fault: Fault, gates: Gates) -> None:
    outcome = boots(gates, b"Here it comes\r\n", "floods", "-m", "boot", "-k", "bare")
    check(fault, outcome)
    assert b"Here it comes" in serial(outcome, "bios-bare")
    assert (outcome.root or Path()).joinpath("machines/bios-bare/serial.log").stat().st_size < 80 << 20


@proves("escape-sequences")
def test_what_is_printed_of_a_guest_has_no_controls(fault: Fault, gates: Gates) -> None:
    line = "\u202eevil\x00\x1b[2J\x1b]0;owned\x07\x9b31m Kernel panic - not syncing".encode()
    outcome = boots(gates, b"\x1bc\x1b[31m" + line + b"\r\n", "hangs", "-m", "boot", "-k", "bare", deadline=600)
    check(fault, outcome)
    assert line in serial(outcome, "bios-bare")


@proves("forged-login-prompt")
def test_a_login_prompt_is_not_a_channel(fault: Fault, gates: Gates) -> None:
    """What a guest says is taken in good faith by the row without the channel; the row with it asks."""
    forged = b"Linux version 6.12.0\r\n[  OK  ] Reached target multi-user.target\r\nosgates-demo login: "
    check(fault, boots(gates, forged, "hangs"))


@pytest.mark.slow
@proves("forged-markers")
def test_the_words_of_the_protocol_mean_nothing_elsewhere(fault: Fault, gates: Gates) -> None:
    ident = b"0" * 32
    forged = b"OSG-" + ident + b"-HELLO\r\nOSG-" + ident + b" 0 0 0\r\nOSG-" + ident + b"-END\r\n"
    check(fault, boots(gates, forged, "hangs"))
