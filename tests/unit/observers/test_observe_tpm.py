"""One row from the copies to the observation: which boots there are, with what, and what is typed in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import (
    Answer,
    GrubSeen,
    KeySeen,
    Outcome,
    SysrqSeen,
    TpmObservation,
    TpmPolicy,
    Try,
    tampers,
)
from pytest_osgates.judging import judge
from pytest_osgates.model import Verdict
from pytest_osgates.observers import tpm
from pytest_osgates.observers.tpm import Row, observe
from pytest_osgates.observers.tpm_slots import Slots
from pytest_osgates.observers.tpm_talk import Login, Phrases
from pytest_osgates.vm.errors import GuestFailed, MachineDied, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import KVM, TCG, Host, Probe, Qemu
from pytest_osgates.vm.spec import Firmware, MachineSpec
from tests.unit.tpm_samples import (
    EDITED,
    PASSPHRASE,
    PIN_POLICY,
    PIN_SLOT,
    PIN_TEXT,
    PRESSED,
    SLOT,
    TPM_POLICY,
)

HOST = Host(Qemu("qemu", (7, 2, 0), "QEMU"), TCG, Probe(KVM, False, "none"))


@dataclass
class Serial:
    said: str = f"the echo of {PASSPHRASE}\nhost login: "

    def tail(self, limit: int) -> str:
        return self.said


@dataclass
class FakeMachine:
    """Of which only its console is looked at, and that by a script."""

    spec: MachineSpec
    records: Path
    serial: Serial = field(default_factory=Serial)
    elapsed: float = 40.0
    resets: int = 1

    def check_guest(self) -> None:
        """It lives."""

    @property
    def screen(self) -> object:
        raise GuestFailed("the machine was powered off by its guest")


@dataclass
class Script:
    """What each boot comes to; `answers` of a boot: for each word typed, by its name; else it is refused or opens."""

    outcomes: list[Outcome]
    says: str = field(default="", kw_only=True)
    answers: list[dict[str, Answer]] = field(default_factory=list)
    seen: list[tuple[str, bool, dict[str, str]]] = field(default_factory=list)
    journal: int = 0
    pins: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    typed: list[tuple[int, str, str]] = field(default_factory=list)
    grub: GrubSeen = EDITED
    sysrq: SysrqSeen = PRESSED
    most_keys: int = 9
    resets: int = 0
    machines: list[FakeMachine] = field(default_factory=list)


class ScriptedTalk:
    """In place of `Talk`."""

    script: Script
    lost = 0

    def __init__(self, *given: Any) -> None:
        self.script.pins.append(tuple(given[5]))
        self.alive: Callable[[], None] = given[2]
        self.number = len(self.script.seen) - 1
        answers = self.script.answers
        self.answers = answers[self.number] if self.number < len(answers) else {}

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("because",)

    @property
    def pins(self) -> tuple[Try, ...]:
        """The first of them: it opens, or leads to the passphrase."""
        opens = self.script.outcomes[self.number] is Outcome.UNLOCKED
        answer = self.answers.get("PIN", Answer.OPENED if opens else Answer.REFUSED)
        return tuple(Try(what=what, answer=answer, line=text) for what, text in self.script.pins[self.number][:1])

    def press(self, press: Callable[[str], None], keys: Sequence[str]) -> SysrqSeen:
        self.script.typed.append((self.number, "sysrq", "".join(keys)))
        if self.script.resets and (gone := self.gone()):
            pressed = tuple(KeySeen(key=key, line="sysrq: x") for key in keys[:3])
            return SysrqSeen(keys=pressed, answer=Answer.ENDED, line=gone)
        return self.script.sysrq.model_copy(
            update={"keys": tuple(KeySeen(key=key, line="sysrq: x") for key in keys[: self.script.most_keys])}
        )

    def said(self, name: str) -> str:
        return f"it says {name}" if name == self.script.says else ""

    def gone(self) -> str:
        """As `Talk` does it."""
        for machine in self.script.machines[-1:]:
            machine.resets += self.script.resets
        try:
            self.alive()
        except GuestFailed as error:
            return error.what
        return ""

    def outcome(self) -> tuple[Outcome, str]:
        if self.script.resets and (gone := self.gone()):
            return Outcome.ENDED, gone
        return self.script.outcomes[self.number], f"it says {PASSPHRASE}"

    def guess(self, what: str, text: str) -> Try:
        self.script.typed.append((self.number, what, text))
        return Try(what=what, answer=self.answers.get(what, Answer.REFUSED), line="no")

    def unlock(self, text: str) -> Try:
        self.script.typed.append((self.number, "right", text))
        return Try(what="right", answer=self.answers.get("right", Answer.OPENED), line="host login:")

    def ask_journal(self, login: Login) -> None:
        assert login.user == "tester"
        self.script.journal += 1


Play = Callable[..., TpmObservation]


@pytest.fixture
def original(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "original")
    home.tpm.mkdir(parents=True)
    home.disk.write_bytes(b"disk")
    home.variables.write_bytes(b"variables")
    home.tpm_state.write_bytes(b"tpm")
    return home


@pytest.fixture
def play(tmp_path: Path, original: Home, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs one row by a script."""

    def run(script: Script, case: str, policy: TpmPolicy = TPM_POLICY, login: Login | None = None) -> TpmObservation:
        slot = PIN_SLOT if policy.has_pin else SLOT

        @contextmanager
        def machine(spec: MachineSpec, host: Host, records: Path) -> Iterator[FakeMachine]:
            assert spec.channel is None
            assert spec.smbios_strings == ()
            assert spec.home is not None
            assert spec.home.directory != original.directory
            assert spec.option_rom is (case == "option-rom-added" and spec.name == "tpm-tampered")
            script.seen.append((spec.name, spec.tpm, spec.home.digests()))
            # Every boot leaves traces.
            spec.home.tpm.mkdir(exist_ok=True)
            spec.home.tpm_state.write_bytes(b"used")
            script.machines.append(FakeMachine(spec, records))
            yield script.machines[-1]

        monkeypatch.setattr(tpm, "Machine", machine)
        monkeypatch.setattr(tpm, "Talk", type("Now", (ScriptedTalk,), {"script": script}))
        monkeypatch.setattr(tpm, "type_at_grub", lambda *given: script.grub)
        monkeypatch.setattr(tpm, "slots", lambda disk: Slots((slot,)))
        monkeypatch.setattr("pytest_osgates.vm.home.create_overlay", lambda base, overlay: overlay.touch())

        def spec(name: str, home: Home, with_tpm: bool) -> MachineSpec:
            return MachineSpec(name, Firmware.UEFI_SECUREBOOT, home=home, tpm=with_tpm)

        def records(role: str) -> Path:
            path = tmp_path / "machines" / f"{case}-{role}-{len(script.seen)}"
            path.mkdir(parents=True)
            return path

        phrases = Phrases.of(policy, PASSPHRASE, policy.pin)
        row = Row(case, policy, phrases, spec, HOST, records, lambda stage, seconds: None, login)
        return observe(original, row, "digest of the disk")

    return run


def verdict(seen: TpmObservation, policy: TpmPolicy = TPM_POLICY) -> Verdict:
    return judge(GATE, seen, policy).verdict


def test_the_untampered_machine_is_left_alone(play: Play) -> None:
    script = Script([Outcome.UNLOCKED])
    seen = play(script, "untampered-2")
    assert verdict(seen) is Verdict.PASS
    assert script.typed == []
    assert script.seen[0][1], "with its TPM"
    assert seen.changes == ()
    assert seen.digests["disk"] == "digest of the disk"


def test_a_tampered_one_then_the_same_undone(play: Play, original: Home) -> None:
    script = Script([Outcome.ASKED, Outcome.UNLOCKED])
    seen = play(script, "fresh")
    assert verdict(seen) is Verdict.PASS
    assert [what for _, what, _ in script.typed] == ["shell probe", "blank", "right"]
    assert script.typed[-1][2] == PASSPHRASE
    tampered, undone = (digests for _, _, digests in script.seen)
    assert tampered["tpm"] == ""
    assert undone == original.digests(), "also what the first boot wrote to the TPM"
    assert PASSPHRASE not in seen.model_dump_json()


def test_a_shell_on_the_screen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the passphrase it is a finding, once the disk is open by itself a question."""

    class Frame:
        digest = "one"

        def text(self) -> str:
            return "Debian GNU/Linux 13\n\nroot@osgates-demo:~# \n"

        def png(self) -> bytes:
            return b"png"

    class Screen:
        def grab(self) -> Frame:
            return Frame()

    monkeypatch.setattr(FakeMachine, "screen", Screen())
    monkeypatch.setattr(FakeMachine, "lit", lambda self, frame: True, raising=False)
    seen = play(Script([Outcome.ASKED, Outcome.UNLOCKED]), "fresh")
    assert seen.boots[0].screen == ("root@osgates-demo:~#",)
    done = judge(GATE, seen, TPM_POLICY)
    assert {finding.key for finding in done.findings} == {("screen-shell", "fresh")}
    # Of a machine that was opened nobody knows whether somebody is logged in there by intent.
    opened = play(Script([Outcome.UNLOCKED]), "untampered-1")
    assert opened.boots[0].screen == ("root@osgates-demo:~#",)
    done = judge(GATE, opened, TPM_POLICY)
    assert (done.verdict, {finding.key for finding in done.findings}) == (
        Verdict.NOT_PROVEN,
        {("screen-shell", "untampered-1")},
    )


def test_without_a_tpm(play: Play) -> None:
    script = Script([Outcome.ASKED, Outcome.UNLOCKED])
    assert verdict(play(script, "absent")) is Verdict.PASS
    assert [with_tpm for _, with_tpm, _ in script.seen] == [False, True]


def test_an_emergency_takes_a_boot_for_each_guess(play: Play) -> None:
    locked = [{"shell probe": Answer.LOCKED}, {"blank": Answer.LOCKED}, {}]
    script = Script([Outcome.ASKED] * 3 + [Outcome.UNLOCKED], locked)
    seen = play(script, "fresh")
    assert verdict(seen) is Verdict.PASS
    assert [(number, what) for number, what, _ in script.typed] == [(0, "shell probe"), (1, "blank"), (2, "right")]


def test_an_emergency_after_the_second_guess(play: Play) -> None:
    script = Script([Outcome.ASKED] * 2 + [Outcome.UNLOCKED], [{"blank": Answer.LOCKED}, {}])
    assert verdict(play(script, "fresh")) is Verdict.PASS
    assert [what for _, what, _ in script.typed] == ["shell probe", "blank", "right"]


@pytest.mark.parametrize(
    ("outcomes", "answers", "expected"),
    [
        ([Outcome.UNLOCKED], [], Verdict.FAIL),
        ([Outcome.SHELL], [], Verdict.FAIL),
        ([Outcome.TIMEOUT], [], Verdict.NOT_PROVEN),
        ([Outcome.ASKED], [{"blank": Answer.OPENED}], Verdict.FAIL),
        ([Outcome.ASKED], [{"shell probe": Answer.SHELL}], Verdict.FAIL),
        ([Outcome.ASKED], [{"blank": Answer.TIMEOUT}], Verdict.NOT_PROVEN),
        ([Outcome.ASKED], [{"right": Answer.REFUSED}], Verdict.FAIL),
        ([Outcome.ASKED], [{"right": Answer.TIMEOUT}], Verdict.NOT_PROVEN),
        ([Outcome.ASKED, Outcome.ASKED], [], Verdict.FAIL),
        ([Outcome.ASKED, Outcome.TIMEOUT], [], Verdict.NOT_PROVEN),
    ],
)
def test_what_goes_wrong_ends_the_row(
    play: Play, outcomes: list[Outcome], answers: list[dict[str, Answer]], expected: Verdict
) -> None:
    script = Script(outcomes, answers)
    assert verdict(play(script, "fresh")) is expected
    assert len(script.seen) == len(outcomes), "no boot more than it takes"


def test_a_machine_of_ours_that_dies_is_told(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(self: ScriptedTalk, what: str, text: str) -> Try:
        raise MachineDied("swtpm was killed by signal 9 while the machine was running")

    monkeypatch.setattr(ScriptedTalk, "guess", dead)
    with pytest.raises(MachineDied):
        play(Script([Outcome.ASKED]), "fresh")


def test_an_original_that_somebody_changes_proves_nothing(
    play: Play, original: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddled(self: ScriptedTalk) -> tuple[Outcome, str]:
        original.tpm_state.write_bytes(b"another")
        return Outcome.UNLOCKED, ""

    monkeypatch.setattr(ScriptedTalk, "outcome", meddled)
    with pytest.raises(UsageError, match="changed while copies of them were in use"):
        play(Script([Outcome.UNLOCKED]), "untampered-1")


def test_the_journal_is_read_once_it_is_open(play: Play) -> None:
    policy = TPM_POLICY.model_copy(update={"reason": "journal"})
    script = Script([Outcome.ASKED, Outcome.UNLOCKED])
    seen = play(script, "fresh", policy, Login("tester"))
    assert (script.journal, seen.reason_from) == (1, "journal")


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: Any, tamper: Any) -> tuple[Any, ...]:
        return tuple(tpm.Change(what=what, before="a", after="b") for what in tamper.changes)

    monkeypatch.setattr(tpm.Workshop, "apply", apply)


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize(
    ("case", "outcomes", "answers", "expected"),
    [
        ("initrd-emergency", [Outcome.LOCKED, Outcome.UNLOCKED], [], Verdict.PASS),
        ("initrd-emergency", [Outcome.LOCKED, Outcome.ASKED], [], Verdict.FAIL),
        ("initrd-emergency", [Outcome.EMERGENCY], [], Verdict.NOT_PROVEN),
        ("initrd-emergency", [Outcome.STOPPED], [], Verdict.NOT_PROVEN),
        ("initrd-emergency", [Outcome.SHELL], [], Verdict.FAIL),
        ("fresh", [Outcome.LOCKED], [], Verdict.FAIL),
        ("init-shell", [Outcome.ASKED, Outcome.UNLOCKED], [{"right": Answer.SHELL}], Verdict.PASS),
        ("rescue-target", [Outcome.ASKED, Outcome.UNLOCKED], [{"right": Answer.LOCKED}], Verdict.PASS),
        ("init-shell", [Outcome.SHELL], [], Verdict.FAIL),
        ("init-shell", [Outcome.ASKED], [{"blank": Answer.SHELL}], Verdict.FAIL),
        ("fresh", [Outcome.ASKED], [{"right": Answer.SHELL}], Verdict.FAIL),
    ],
)
def test_known_ways_to_a_shell(
    case: str, outcomes: list[Outcome], answers: list[dict[str, Answer]], expected: Verdict, play: Play
) -> None:
    script = Script(outcomes, answers)
    assert verdict(play(script, case)) is expected
    assert len(script.seen) == len(outcomes)


def test_every_known_tamper_has_a_row_that_ends(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def applied(self: Any, tamper: Any) -> tuple[Any, ...]:
        return tuple(tpm.Change(what=what, before="a", after="b") for what in tamper.changes)

    monkeypatch.setattr(tpm.Workshop, "apply", applied)
    for name, tamper in tampers().items():
        if tamper.pin:
            continue
        script = Script([Outcome.ASKED, Outcome.UNLOCKED])
        seen = play(script, name)
        # No disk that is not bound to PCR 2 resists an option ROM.
        bound = SLOT.model_copy(update={"pcrs": (2, *SLOT.pcrs, 12)})
        assert verdict(seen.model_copy(update={"slots": (bound,)})) is Verdict.PASS, name
        assert len(script.seen) == 1 + tamper.undo


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize(
    ("case", "says", "which"),
    [("fresh", "", "PIN"), ("wrong-pin", "bad-pin", "wrong PIN 1"), ("pin-lockout", "lockout", "PIN")],
)
def test_pins_are_typed_in_each_boot(case: str, says: str, which: str, play: Play) -> None:
    script = Script([Outcome.ASKED, Outcome.UNLOCKED], says=says)
    seen = play(script, case, PIN_POLICY)
    # The undone machine opens to the right one, which is typed once.
    assert {what for what, _ in script.pins[0]} == {which}
    assert script.pins[1] == (("PIN", PIN_TEXT),)
    for_undone = [boot.model_copy(update={"bad_pin": "", "lockout": ""}) for boot in seen.boots[1:]]
    done = judge(GATE, seen.model_copy(update={"boots": (seen.boots[0], *for_undone)}), PIN_POLICY)
    assert (done.verdict, done.findings) == (Verdict.PASS, ())
    assert PIN_TEXT not in seen.model_dump_json()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [([], Verdict.PASS), ([{"PIN": Answer.REFUSED}], Verdict.NOT_PROVEN), ([{"PIN": Answer.EARLY}], Verdict.FAIL)],
)
def test_the_untampered_machine_opens_to_its_pin(
    answers: list[dict[str, Answer]], expected: Verdict, play: Play
) -> None:
    script = Script([Outcome.UNLOCKED], answers)
    assert verdict(play(script, "untampered-1", PIN_POLICY), PIN_POLICY) is expected
    assert script.typed == []


@pytest.mark.usefixtures("applied")
def test_a_pin_that_opens_is_the_end_of_the_row(play: Play) -> None:
    script = Script([Outcome.UNLOCKED], says="bad-pin")
    assert verdict(play(script, "wrong-pin", PIN_POLICY), PIN_POLICY) is Verdict.FAIL
    assert len(script.seen) == 1


@pytest.mark.usefixtures("applied")
def test_a_pin_of_which_nothing_came_is_the_end_of_the_row(play: Play) -> None:
    """The passphrase that was taken after it proves nothing."""
    script = Script([Outcome.ASKED], [{"PIN": Answer.TIMEOUT}], says="bad-pin")
    assert verdict(play(script, "wrong-pin", PIN_POLICY), PIN_POLICY) is Verdict.NOT_PROVEN
    assert len(script.seen) == 1
