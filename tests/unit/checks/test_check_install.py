"""The judge of the gate `install`, and what on a disk would start."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.checks.install import GATE, FirstBoot, InstallObservation, InstallOutcome, InstallPolicy, Left
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.disk.startable import startable
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Verdict
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import ESP, BytesDisk, fat, gpt

MIB = 1 << 20
LOADER = Left(place="partition 1", what="/EFI/BOOT/BOOTX64.EFI")


GONE_THROUGH = FirstBoot(outcome=InstallOutcome.DONE, steps=2, wanted_steps=2)


def first(**changes: Any) -> InstallObservation:
    """An installation that ended well, and this first boot, after which nothing was tried unless it is done."""
    boot = GONE_THROUGH.model_copy(update=changes)
    return seen(first_boot=boot, starts="started" if boot.outcome is InstallOutcome.DONE else "")


def seen(outcome: InstallOutcome = InstallOutcome.DONE, **changes: Any) -> InstallObservation:
    fields: dict[str, Any] = {
        "way": "script",
        "outcome": outcome,
        "steps": 1,
        "wanted_steps": 1,
        "left": (LOADER,) if outcome is InstallOutcome.DONE else (),
        "starts": "started" if outcome is InstallOutcome.DONE else "",
    }
    return InstallObservation(**{**fields, **changes})


def verdict(observation: InstallObservation) -> tuple[Verdict, set[str]]:
    done = judge_gate(GATE, observation, InstallPolicy())
    return done.verdict, {finding.rule for finding in done.findings}


def test_an_installation_that_starts_passes_and_every_control_is_caught() -> None:
    for observation in (seen(), first()):
        judged = judge_gate(GATE, observation, InstallPolicy())
        assert judged.verdict is Verdict.PASS
        assert [control.name for control in judged.controls if not control.caught] == []
    done = judge_gate(GATE, seen(), InstallPolicy())
    assert [control for control in done.controls if not control.caught] == []
    assert (done.verdict, done.findings) == (Verdict.PASS, ())


@pytest.mark.parametrize(
    ("observation", "said", "rules"),
    [
        (seen(InstallOutcome.FAILED), Verdict.FAIL, {"install-failed"}),
        (seen(InstallOutcome.STALLED), Verdict.FAIL, {"install-stalled"}),
        (seen(InstallOutcome.ENDED), Verdict.FAIL, {"install-ended"}),
        (seen(InstallOutcome.TIMEOUT), Verdict.NOT_PROVEN, {"install-timeout"}),
        (seen(InstallOutcome.FAILED, left=(LOADER,)), Verdict.FAIL, {"install-failed", "half-installed"}),
        (seen(InstallOutcome.TIMEOUT, left=(LOADER,)), Verdict.FAIL, {"install-timeout", "half-installed"}),
        (seen(InstallOutcome.FAILED, left=None), Verdict.FAIL, {"install-failed", "disk-unread"}),
        (seen(left=None), Verdict.NOT_PROVEN, {"disk-unread"}),
        (seen(left=()), Verdict.FAIL, {"nothing-to-start"}),
        (seen(starts=""), Verdict.NOT_PROVEN, {"start-unproven"}),
        (seen(starts="silent"), Verdict.NOT_PROVEN, {"start-unproven"}),
        (seen(starts="ended"), Verdict.FAIL, {"does-not-start"}),
        (seen(lost=1), Verdict.NOT_PROVEN, {"lost-output"}),
        (seen(steps=0), Verdict.NOT_PROVEN, {"install-steps"}),
        (seen(steps=0, wanted_steps=0), Verdict.NOT_PROVEN, {"install-steps"}),
        (first(outcome=None), Verdict.NOT_PROVEN, {"first-boot-unproven"}),
        (first(outcome=InstallOutcome.FAILED), Verdict.FAIL, {"first-boot-failed"}),
        (first(outcome=InstallOutcome.STALLED), Verdict.FAIL, {"first-boot-stalled"}),
        (first(outcome=InstallOutcome.ENDED), Verdict.FAIL, {"first-boot-ended"}),
        (first(outcome=InstallOutcome.TIMEOUT), Verdict.NOT_PROVEN, {"first-boot-timeout"}),
        (first(outcome=InstallOutcome.UNPROVEN), Verdict.NOT_PROVEN, {"first-boot-unproven"}),
        (first(outcome=InstallOutcome.STALLED, lost=1), Verdict.NOT_PROVEN, {"first-boot-stalled", "lost-output"}),
        (first(outcome=InstallOutcome.ENDED, lost=1), Verdict.NOT_PROVEN, {"first-boot-ended", "lost-output"}),
        (first(outcome=InstallOutcome.FAILED, lost=1), Verdict.FAIL, {"first-boot-failed", "lost-output"}),
        (seen(InstallOutcome.UNPROVEN), Verdict.NOT_PROVEN, {"install-unproven"}),
        (seen(InstallOutcome.STALLED, lost=1), Verdict.NOT_PROVEN, {"install-stalled", "lost-output"}),
        (seen(InstallOutcome.FAILED, lost=1), Verdict.FAIL, {"install-failed", "lost-output"}),
        (first(steps=1), Verdict.NOT_PROVEN, {"first-boot-steps"}),
        (first(steps=0, wanted_steps=0), Verdict.NOT_PROVEN, {"first-boot-steps"}),
        (first(lost=3), Verdict.NOT_PROVEN, {"lost-output"}),
        (seen(first_boot=GONE_THROUGH, starts=""), Verdict.NOT_PROVEN, {"start-unproven"}),
        (seen(InstallOutcome.FAILED, first_boot=FirstBoot(wanted_steps=2)), Verdict.FAIL, {"install-failed"}),
    ],
)
def test_each_end(observation: InstallObservation, said: Verdict, rules: set[str]) -> None:
    assert verdict(observation) == (said, rules)


@given(
    st.sampled_from(InstallOutcome),
    st.sampled_from(["", "started", "silent", "ended", "refused"]),
    st.sampled_from([None, (), (LOADER,)]),
    st.integers(0, 2),
    st.none()
    | st.builds(
        FirstBoot,
        outcome=st.none() | st.sampled_from(InstallOutcome),
        steps=st.integers(0, 2),
        wanted_steps=st.just(2),
        lost=st.integers(0, 1),
    ),
)
def test_only_one_end_passes(
    outcome: InstallOutcome, starts: str, left: tuple[Left, ...] | None, steps: int, boot: FirstBoot | None
) -> None:
    said, _ = verdict(seen(outcome, starts=starts, left=left, steps=steps, wanted_steps=2, first_boot=boot))
    good = outcome is InstallOutcome.DONE and starts == "started" and bool(left) and steps == 2
    good = good and (boot is None or boot == GONE_THROUGH)
    assert (said is Verdict.PASS) is good


def started(raw: bytes, tmp_path: Path) -> tuple[tuple[str, str], ...]:
    (tmp_path / "disk").write_bytes(raw)
    with open_disk(tmp_path / "disk") as disk:
        return startable(disk)


def test_what_a_machine_would_start(tmp_path: Path) -> None:
    assert started(bytes(MIB), tmp_path) == ()
    files = {"EFI/BOOT/BOOTX64.EFI": b"MZ", "EFI/debian/grub.cfg": b"x", "EFI/x/empty.efi": b""}
    esp = fat(tmp_path / "esp", files).read_bytes()
    disk = gpt((2 * MIB + len(esp)) // 512, (ESP, 2048, len(esp) // 512, "esp"))
    # A table alone starts nothing.
    assert started(bytes(disk), tmp_path) == ()
    disk[MIB : MIB + len(esp)] = esp
    assert started(bytes(disk), tmp_path) == (("partition 1", "/EFI/BOOT/BOOTX64.EFI"),)
    disk[:4] = b"\xeb\x63\x90\x10"
    assert started(bytes(disk), tmp_path)[0] == ("boot sector", "machine code")
    disk[:440] = bytes.fromhex("fab800108ed0bc00b0").ljust(440, b"\x90")
    assert started(bytes(disk), tmp_path) == (("partition 1", "/EFI/BOOT/BOOTX64.EFI"),)
    # A volume without a table.
    assert started(b"\x01" * MIB, tmp_path) == ()


@given(st.binary(max_size=2000))
def test_any_disk_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ImageError):
        startable(BytesDisk(raw))
