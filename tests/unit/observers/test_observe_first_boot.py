"""The first boot of an installed machine, answered, before the state `installed` counts as made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from pytest_osgates.checks.install import InstallObservation, InstallOutcome
from pytest_osgates.observers import install, install_talk
from pytest_osgates.profiles.schema import FirstBootSection, InstallStep
from pytest_osgates.vm import dialogue as dialogue_module
from pytest_osgates.vm.errors import GuestFailed, MachineDied
from pytest_osgates.vm.home import Home
from tests.unit.observers.test_observe_install import FakeMachine, FakeShell, done, script
from tests.unit.observers.test_observe_install import site as site

FIRST = (InstallStep(expect="Enter passphrase:", send="secret"), InstallStep(expect="once more:", send="secret"))
FIRST_SAYS = {2.0: "\r\nEnter passphrase: ", 8.0: "\r\nonce more: ", 14.0: "\r\nenrolled\r\n"}
LOGIN = {20.0: "\r\nhost login: "}


def first_boot(**keys: Any) -> FirstBootSection:
    return FirstBootSection(**{"dialogue": FIRST, "done": "login: $", "stall_s": 40, "deadline_s": 300, **keys})


@pytest.fixture
def two_boots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Goes through an installation by a script that ends well, and then through the first boot of `machine`."""

    def done(section: FirstBootSection, machine: FakeMachine) -> tuple[InstallObservation, Home, list[Any]]:
        place, home = request.getfixturevalue("site")(script(first_boot=section), FakeMachine(FakeShell([], "0")))
        machines = [FakeMachine(FakeShell([], "0")), machine]
        made: list[Any] = []

        def machine_of(*arguments: Any) -> FakeMachine:
            made.append(arguments)
            return machines.pop(0)

        monkeypatch.setattr(install, "Machine", machine_of)
        monkeypatch.setattr(install_talk, "Machine", machine_of)
        seen = install.install(place, home)
        return seen, home, made

    return done


def test_a_first_boot_that_is_gone_through(two_boots: Any) -> None:
    machine = FakeMachine(says={**FIRST_SAYS, **LOGIN})
    seen, home, made = two_boots(first_boot(), machine)
    first = seen.first_boot
    assert (first.outcome, first.steps, first.wanted_steps, first.lost) == (InstallOutcome.DONE, 2, 2, 0)
    assert machine.typed == ["secret\r", "secret\r"]
    assert seen.complete
    assert seen.starts == "started"
    assert home.disk.exists()
    # The first one has the medium and the guest channel; of the second, nothing is in a PCR that a later one lacks.
    live, own = (arguments[0] for arguments in made)
    assert (live.cdrom is None, live.channel is None) == (False, False)
    assert (own.cdrom, own.channel, own.smbios_strings, own.home) == (None, None, (), home)
    assert "kernel-panic" in {pattern.name for pattern in made[1][3] if pattern.fatal}


class Panics(FakeMachine):
    """With these bytes around the instruction pointer."""

    def __init__(self, code: str) -> None:
        super().__init__(says={**FIRST_SAYS, 14.0: f"\r\nOops: 0000 [#1]\r\nCode: {code}\r\n"})
        self.alarm = SimpleNamespace(name="kernel-oops", fatal=True)

    def check_guest(self) -> None:
        if self.now >= 16.0:
            self.watcher = SimpleNamespace(fatal=self.alarm, alarms=(self.alarm,))
            raise GuestFailed("kernel-oops after 16.0 s on serial: Oops: 0000 [#1]")


@pytest.mark.parametrize(
    ("code", "kind", "outcome"),
    [
        ("48 89 66 <90> 55", "tcg", InstallOutcome.UNPROVEN),
        ("48 89 66 <90> 55", "kvm", InstallOutcome.ENDED),
        ("48 89 66 <0f> 55", "tcg", InstallOutcome.ENDED),
    ],
)
def test_what_only_an_emulated_processor_does_is_no_fault_of_the_first_boot(
    code: str, kind: str, outcome: InstallOutcome, two_boots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.observers.test_observe_install.ACCELERATOR", kind)
    seen, home, _ = two_boots(first_boot(), Panics(code))
    assert seen.first_boot.outcome is outcome, seen.first_boot.detail
    assert not home.disk.exists()


def test_what_was_lost_is_told_however_it_ends(two_boots: Any) -> None:
    machine = FakeMachine(says=FIRST_SAYS)
    machine.dropped = 7
    seen, _, _ = two_boots(first_boot(), machine)
    assert (seen.first_boot.outcome, seen.first_boot.lost) == (InstallOutcome.STALLED, 7)


def test_a_first_boot_that_starts_itself_anew_goes_on(two_boots: Any) -> None:
    seen, home, _ = two_boots(first_boot(), FakeMachine(says={**FIRST_SAYS, **LOGIN}, ends="reset", ends_at=10.0))
    assert seen.first_boot.outcome is InstallOutcome.DONE, seen.first_boot.detail
    assert home.disk.exists()


@pytest.mark.parametrize(
    ("keys", "machine", "outcome", "steps", "detail"),
    [
        ({}, FakeMachine(says=FIRST_SAYS), InstallOutcome.STALLED, 2, "last: enrolled"),
        ({}, FakeMachine(says={1.0: "Enter passphrase: "}), InstallOutcome.UNPROVEN, 1, "has arrived: nothing was"),
        # It asks again, and says nothing of why; or why.
        (
            {},
            FakeMachine(says={1.0: "Enter passphrase: ", 9.0: "\r\n[ 3.141592] random: ready\r\nEnter passphrase: "}),
            InstallOutcome.UNPROVEN,
            1,
            "has arrived",
        ),
        (
            {},
            FakeMachine(says={1.0: "Enter passphrase: ", 9.0: "\r\nNo key available\r\nEnter passphrase: "}),
            InstallOutcome.STALLED,
            1,
            "nothing was written",
        ),
        (
            {"failed": ("^not enrolled",)},
            FakeMachine(says={**FIRST_SAYS, 14.0: "\r\nnot enrolled\r\n", **LOGIN}),
            InstallOutcome.FAILED,
            2,
            "not enrolled",
        ),
        (
            {"failed": ("^not enrolled",)},
            FakeMachine(says={**FIRST_SAYS, 20.0: "\r\nhost login: \r\nnot enrolled"}),
            InstallOutcome.FAILED,
            2,
            "not enrolled",
        ),
        (
            {},
            FakeMachine(says=FIRST_SAYS, ends="guest-shutdown", ends_at=16.0),
            InstallOutcome.ENDED,
            2,
            "powered off by its guest",
        ),
        ({}, FakeMachine(says=FIRST_SAYS, ends="reset", ends_at=16.0), InstallOutcome.STALLED, 2, "last: enrolled"),
        (
            {"deadline_s": 60},
            FakeMachine(says={float(second): f"{second}\r\n" for second in range(2000)}),
            InstallOutcome.TIMEOUT,
            0,
            "not done after",
        ),
        # What was there before the dialogue is no end of it.
        ({}, FakeMachine(says={1.0: "host login: "}), InstallOutcome.STALLED, 0, "host login"),
    ],
)
def test_each_other_end_of_a_first_boot(
    keys: dict[str, Any], machine: FakeMachine, outcome: InstallOutcome, steps: int, detail: str, two_boots: Any
) -> None:
    seen, home, _ = two_boots(first_boot(**keys), machine)
    first = seen.first_boot
    assert (seen.outcome, first.outcome, first.steps) == (InstallOutcome.DONE, outcome, steps), first.detail
    assert detail in first.detail
    assert not seen.complete
    assert seen.starts == ""
    assert not home.disk.exists()


class Echoing(FakeMachine):
    """What is typed comes back, for the echo is not off yet."""

    def send(self, data: bytes) -> None:
        super().send(data)
        self.says = {**self.says, self.now: data.decode() + "\n"}


def test_what_was_typed_is_not_quoted(two_boots: Any) -> None:
    machine = Echoing(says={**FIRST_SAYS, 14.0: "\r\nnot enrolled: secret\r\n"})
    seen, _, _ = two_boots(first_boot(failed=("^not enrolled.*",)), machine)
    first = seen.first_boot
    assert first.detail == "not enrolled: (typed)"
    assert "secret" not in "".join(first.log)
    assert any("(typed)" in line for line in first.log)


class Busy(FakeMachine):
    """It writes to its disk all the time, and says nothing."""

    def writes(self) -> int:
        return int(self.now)


@pytest.mark.parametrize("kind", [FakeMachine, Echoing])
def test_what_was_typed_too_early_is_typed_again_and_not_for_ever(
    kind: type[FakeMachine], two_boots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_talk, "AGAIN_SECONDS", 20.0)
    machine = kind(says={2.0: "\r\nEnter passphrase: "})
    seen, _, _ = two_boots(first_boot(stall_s=200), machine)
    assert machine.typed == ["secret\r"] * 3
    assert (seen.first_boot.outcome, seen.first_boot.steps) == (InstallOutcome.UNPROVEN, 1)


@pytest.mark.parametrize(
    "machine",
    [
        FakeMachine(says={2.0: "\r\nEnter passphrase: ", 12.0: "\r\nunlocking\r\n"}),
        # A prompt is a line without an end.
        FakeMachine(says={2.0: "\r\nEnter passphrase: ", 12.0: "user name: "}),
        FakeMachine(says={2.0: "\r\nEnter passphrase: ", 12.0: "******"}),
        Busy(says={2.0: "\r\nEnter passphrase: "}),
    ],
)
def test_whoever_is_at_work_is_not_told_twice(
    machine: FakeMachine, two_boots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_talk, "AGAIN_SECONDS", 20.0)
    two_boots(first_boot(stall_s=200), machine)
    assert machine.typed == ["secret\r"]


def test_a_prompt_that_has_just_come_is_not_answered_with_what_was_typed_before(
    two_boots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_talk, "AGAIN_SECONDS", 20.0)
    machine = FakeMachine(says={2.0: "\r\nEnter passphrase:\r\n", 12.0: "user name: "})
    place = dialogue_module
    take = place.Dialogue._take

    def unsettled(talk: Any, timeout: float) -> None:
        monkeypatch.setattr(place, "SETTLED", 1e9)
        take(talk, timeout)
        monkeypatch.setattr(place, "SETTLED", 0.0)

    monkeypatch.setattr(place.Dialogue, "_take", unsettled)
    two_boots(first_boot(stall_s=200), machine)
    assert machine.typed == ["secret\r"]


def test_nobody_is_told_twice_who_goes_on_at_the_screen(two_boots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_talk, "AGAIN_SECONDS", 20.0)
    monkeypatch.setattr(install_talk, "need", lambda: None)
    machine = FakeMachine(says={2.0: "\r\nEnter passphrase: "})
    two_boots(first_boot(stall_s=200, dialogue=FIRST[:1], done_on_screen=True), machine)
    assert machine.typed == ["secret\r"]


@pytest.mark.parametrize(
    ("deaf", "outcome"), [(0, InstallOutcome.DONE), (1, InstallOutcome.DONE), (2, InstallOutcome.UNPROVEN)]
)
def test_a_machine_that_has_to_be_cut_off_is_not_had(deaf: int, outcome: InstallOutcome, two_boots: Any) -> None:
    machine = FakeMachine(says={**FIRST_SAYS, **LOGIN})
    machine.deaf = deaf
    seen, home, _ = two_boots(first_boot(), machine)
    assert seen.first_boot.outcome is outcome, seen.first_boot.detail
    assert home.disk.exists() is (outcome is InstallOutcome.DONE)


def test_that_it_failed_counts_more_than_that_it_is_still_on(two_boots: Any) -> None:
    machine = FakeMachine(says={**FIRST_SAYS, 20.0: "\r\nhost login: \r\nnot enrolled"})
    machine.deaf = 2
    seen, _, _ = two_boots(first_boot(failed=("^not enrolled",)), machine)
    assert seen.first_boot.outcome is InstallOutcome.FAILED


def test_a_machine_of_ours_that_dies_in_the_first_boot_is_nobody_s_fault(two_boots: Any) -> None:
    with pytest.raises(MachineDied):
        two_boots(first_boot(), FakeMachine(says=FIRST_SAYS, ends="died", ends_at=9.0))


def test_after_an_installation_that_failed_there_is_no_first_boot(request: pytest.FixtureRequest) -> None:
    seen = done(request.getfixturevalue("site"), script(first_boot=first_boot()), FakeMachine(FakeShell([], "3")))
    assert (seen.outcome, seen.first_boot.outcome, seen.first_boot.wanted_steps) == (InstallOutcome.FAILED, None, 2)
    assert not seen.complete


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"done": ""}, "fits anything"),
        ({"done": ".*"}, "fits anything"),
        ({"failed": ("x*",)}, "fits anything"),
        ({"dialogue": ()}, "at least 1 item"),
        ({"deadline_s": 0}, "greater than 0"),
        ({"ends": "off"}, "Extra inputs"),
    ],
)
def test_first_boots_that_contradict_themselves(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        first_boot(**keys)
