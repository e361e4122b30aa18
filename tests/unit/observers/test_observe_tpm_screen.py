"""One row of a machine that asks on its screen."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_osgates.checks.tpm import GATE
from pytest_osgates.checks.tpm_model import Outcome
from pytest_osgates.judging import judge
from pytest_osgates.model import Verdict
from pytest_osgates.observers import tpm
from pytest_osgates.vm.errors import MissingTool, UsageError
from tests.unit.observers.test_observe_tpm import Play, Script, Serial, verdict
from tests.unit.observers.test_observe_tpm import original as original
from tests.unit.observers.test_observe_tpm import play as play
from tests.unit.tpm_samples import PASSPHRASE, TPM_POLICY

SCREEN_POLICY = TPM_POLICY.model_copy(update={"console": "screen"})


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an OCR program."""
    monkeypatch.setattr(tpm, "need", lambda: None)


@pytest.mark.usefixtures("readable")
def test_a_machine_that_asks_on_its_screen(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the screen that is talked to, and whose pictures are kept."""
    lines: list[Any] = []
    monkeypatch.setattr(tpm, "ScreenLine", lambda *given, **more: lines.append((given, more)) or Said())

    class Said:
        def tail(self, limit: int) -> str:
            return f"asked\nand echoed {PASSPHRASE[:3]} {PASSPHRASE[3:].upper()}"

    shot: list[str] = []
    monkeypatch.setattr(tpm, "_shoot", lambda machine, name="last": shot.append(name))
    seen = play(Script([Outcome.ASKED, Outcome.UNLOCKED]), "fresh", SCREEN_POLICY)
    assert (verdict(seen, SCREEN_POLICY), seen.talked_on) == (Verdict.PASS, "screen")
    assert shot == ["asked", "typed-1", "typed-2", "last", "last"]
    assert seen.boots[0].console == ("asked", "and echoed (the passphrase)")
    (_, _, known), more = lines[0]
    assert any(sign.regex.search("Please unlock disk uvda3_crypt:") for sign in known if sign.name == "prompt")
    assert more["transcript"].name == "screen.log"
    assert more["hide"](f"login: {PASSPHRASE}") == "login: (the passphrase)"


@pytest.mark.usefixtures("readable")
def test_a_shell_on_the_serial_console_of_a_machine_that_asks_on_its_screen(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Serial, "tail", lambda self, limit: "Started debug-shell\r\n\x1b[0mroot@host:~# ")
    seen = play(Script([Outcome.ASKED, Outcome.UNLOCKED]), "fresh", SCREEN_POLICY)
    assert "root@host:~#" in seen.boots[0].screen
    done = judge(GATE, seen, SCREEN_POLICY)
    assert {finding.key for finding in done.findings} == {("serial-shell", "fresh")}
    assert (done.verdict, "serial console" in done.findings[0].seen) == (Verdict.FAIL, True)
    # Without that the controls are caught all the same.
    clean = seen.model_copy(update={"boots": tuple(boot.model_copy(update={"screen": ()}) for boot in seen.boots)})
    done = judge(GATE, clean, SCREEN_POLICY)
    assert (done.verdict, [control for control in done.controls if not control.caught]) == (Verdict.PASS, [])


@pytest.mark.usefixtures("readable")
def test_a_serial_console_is_not_read_by_ocr(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be a misread shell is none where nothing is misread."""
    monkeypatch.setattr(Serial, "tail", lambda self, limit: "[initramfs)\r\n|#\r\nosgates_42\r\n")
    seen = play(Script([Outcome.ASKED, Outcome.UNLOCKED]), "fresh", SCREEN_POLICY)
    assert seen.boots[0].screen == ()


def test_a_screen_that_cannot_be_read_or_typed_at_boots_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise MissingTool("tesseract is not installed", remedy="apt-get install tesseract-ocr")

    script = Script([Outcome.ASKED])
    monkeypatch.setattr(tpm, "need", lacking)
    with pytest.raises(MissingTool):
        play(script, "fresh", SCREEN_POLICY)
    monkeypatch.setattr(tpm, "need", lambda: None)
    with pytest.raises(UsageError, match="no key of the US layout types 'ü'"):
        play(script, "fresh", SCREEN_POLICY.model_copy(update={"wrong": ("für",)}))
    assert script.seen == []
