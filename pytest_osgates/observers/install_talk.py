"""An installation, or the first boot of what was installed, that is answered: on the serial console, or with the
keyboard at what the screen shows."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.checks.emulated import excuses
from pytest_osgates.checks.install import InstallOutcome
from pytest_osgates.observers.install_work import (
    PIECE,
    POWER_OFF_SECONDS,
    Over,
    Site,
    Worker,
    ended_is_over,
    machine_spec,
)
from pytest_osgates.profiles.schema import FirstBootSection, InstallSection, InstallStep
from pytest_osgates.vm.dialogue import Dialogue, Sign
from pytest_osgates.vm.errors import GuestFailed, QmpFailed
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.ocr import Reader, need
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.screen_line import MOVING_SECONDS, STILL_SECONDS
from pytest_osgates.vm.spec import AccelKind
from pytest_osgates.vm.text import strip_escapes

LOOK_SECONDS = 2.0
# Who asks for a passphrase throws away what was typed before it turned the echo off: typed again, where nothing at
# all came of it.
AGAIN_SECONDS = 60.0
_TIMES = 3
_PRESSES = 2
# By printk: it comes whatever is typed.
_KERNEL = re.compile(r"\[ *\d+\.\d+\]")
FIRST = "install-first-boot"


def reads_screen(section: InstallSection | FirstBootSection) -> bool:
    """Whether the dialogue waits for anything on the screen."""
    return section.done_on_screen or any(step.screen for step in section.dialogue)


class Talk(Worker):
    """A dialogue on the serial console, or with the keyboard at what the screen shows.

    :raise MissingTool: the screen is to be read, and there is no OCR program.
    """

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records, len(site.section.dialogue))
        self._screen = ""
        self._digest = ""
        # Seconds since power-on at which the picture came, and at which OCR was last asked; whether it was read.
        self._changed_at = 0.0
        self._unread = False
        self._read_at = 0.0
        # A graphical installer: by OCR, once its picture is one that has to be read.
        self._reader: Reader | None = None
        if reads_screen(site.section):
            need()
            self._reader = Reader()

    def _machine(self, home: Home) -> Machine:
        return Machine(machine_spec(self.site, "install", home, None, cdrom=True), self.site.host, self.records)

    def work(self, home: Home) -> None:
        section = self.site.section
        signs = [Sign("failed", regex) for regex in self._failures]
        signs += [Sign(f"step {number}", re.compile(step.expect)) for number, step in enumerate(section.dialogue)]
        if section.done:
            signs.append(Sign("done", re.compile(section.done)))
        with self._machine(home) as machine:
            talk = Dialogue(machine.serial, signs, lambda: self._look(machine))
            try:
                self._through(machine, talk)
            finally:
                self.lost = talk.lost

    def _through(self, machine: Machine, talk: Dialogue) -> None:
        section = self.site.section
        with ended_is_over(lambda: self._ending(machine, talk)):
            for number, step in enumerate(section.dialogue):
                self._await(machine, talk, f"step {number}", step.expect, on_screen=step.screen)
                self.shoot(machine, f"step-{number + 1}")
                if self._resets is None:
                    self._resets = machine.resets
                # Before it is typed: what ends with the last word may end at once.
                self.steps += 1
                self._answer(machine, talk, step)
            if section.done:
                self._await(machine, talk, "done", section.done, on_screen=section.done_on_screen)
                self.shoot(machine, "last")
                still_on = self._power_off(machine)
                self._last_words(talk)
                if still_on:
                    raise Over(InstallOutcome.UNPROVEN, still_on)
                return
            if section.ends == "reboot":
                self._until_reset(machine, talk)
                self._last_words(talk)
                return
        self._until_off(machine, talk)
        self._last_words(talk)

    def _power_off(self, machine: Machine) -> str:
        """Why it does not count as switched off; a live system may be cut off."""
        machine.power_off(POWER_OFF_SECONDS * self.site.patience)
        return ""

    def _ending(self, machine: Machine, talk: Dialogue) -> None:
        """It does not end well: what is kept of it."""
        self.shoot(machine, "last")
        talk.rest()
        self.said = strip_escapes(machine.serial.tail(PIECE))

    def _last_words(self, talk: Dialogue) -> None:
        """:raise Over: at any time it said that it failed: also just before it ended, or was answered."""
        talk.rest()
        if (heard := talk.ever.get("failed")) is not None:
            raise Over(InstallOutcome.FAILED, heard.line)

    def _until_reset(self, machine: Machine, talk: Dialogue) -> None:
        """Ended before it starts from its disk: what that comes to is seen later, on a copy."""
        while machine.resets == self._resets:
            if (heard := talk.wait(("failed",), LOOK_SECONDS)) is not None:
                raise Over(InstallOutcome.FAILED, heard.line)

    def _until_off(self, machine: Machine, talk: Dialogue) -> None:
        try:
            while True:
                if (heard := talk.wait(("failed",), LOOK_SECONDS)) is not None:
                    self.shoot(machine, "last")
                    raise Over(InstallOutcome.FAILED, heard.line)
        except GuestFailed as error:
            if machine.ended != "guest-shutdown":
                raise Over(InstallOutcome.ENDED, error.what) from error

    def _await(self, machine: Machine, talk: Dialogue, name: str, expect: str, *, on_screen: bool) -> None:
        """:raise Over: it does not come."""
        while True:
            heard = talk.wait(("failed",) if on_screen else ("failed", name), LOOK_SECONDS)
            if heard is not None:
                if heard.name == "failed":
                    raise Over(InstallOutcome.FAILED, heard.line)
                return
            if on_screen and re.search(expect, self._screen, re.MULTILINE):
                return
            if machine.serial.closed:
                machine.check_guest()
            self._still(machine, talk, on_screen=on_screen)

    def _still(self, machine: Machine, talk: Dialogue, *, on_screen: bool) -> None:
        """Nothing that is waited for has come yet."""

    def _look(self, machine: Machine) -> None:
        """Once a second, while it is waited for."""
        machine.check_guest()
        frame = machine.screen.grab()
        if frame.digest != self._digest:
            self._digest, self._changed_at, self._unread = frame.digest, machine.elapsed, True
        if self._unread and (text := self._text(machine, frame)) is not None:
            self._screen, self._unread = text, False
        self.said = strip_escapes(machine.serial.tail(PIECE))
        self.failing(self._screen)
        self.alive(machine, machine.serial.spoken, self._digest)

    def _text(self, machine: Machine, frame: Frame) -> str | None:
        """None: not now. OCR takes a while: it gets pictures that stand still, and now and then one that moves."""
        if not machine.lit(frame):
            return ""
        if self._reader is None:
            return frame.text()
        reading = self._reader.glance(frame)
        if reading is None:
            now = machine.elapsed
            if now - self._changed_at < STILL_SECONDS and now - self._read_at < MOVING_SECONDS:
                return None
            self._read_at = now
            reading = self._reader.read(frame)
        return frame.text() if reading.exact else "\n".join(reading.lines)

    def _type(self, talk: Dialogue, text: str) -> None:
        """:raise GuestFailed: nobody is there any more."""
        try:
            talk.say(text, forget=True)
        except OSError as error:
            raise GuestFailed(f"the console is gone: {error.strerror}") from error

    def _answer(self, machine: Machine, talk: Dialogue, step: InstallStep) -> None:
        if step.send is not None and not step.screen:
            self._type(talk, step.send)
            return
        for keys in (*keys_of(step.send or ""), *(tuple(key.split("-")) for key in step.keys)):
            machine.send_keys(*keys)
        # What comes next is not what was there before.
        self._screen = ""


class FirstTalk(Talk):
    """The first boot of what was installed: without medium and channel, as the boots that are judged later."""

    doing = "the first boot"

    def __init__(self, site: Site, records: Path) -> None:
        super().__init__(site, records)
        self._step: InstallStep | None = None
        self._typed_at = 0.0
        # When it was typed: bytes on the serial console, the disks' writes, the picture.
        self._then: tuple[int, int, str] = (0, 0, "")
        self._times = 0
        # Why its end is the emulation's fault.
        self._excuse = ""

    def _machine(self, home: Home) -> Machine:
        emulated = self.site.host.accelerator.kind is AccelKind.TCG
        spec = machine_spec(self.site, FIRST, home, None, cdrom=False)
        return Machine(spec, self.site.host, self.records, boot_check.patterns(emulated=emulated, asked=True))

    def work(self, home: Home) -> None:
        try:
            super().work(home)
        except Over as over:
            if over.outcome is InstallOutcome.ENDED and self._excuse:
                raise Over(InstallOutcome.UNPROVEN, f"{over.detail}; {self._excuse}") from over
            raise

    def _ending(self, machine: Machine, talk: Dialogue) -> None:
        super()._ending(machine, talk)
        if (alarm := machine.watcher.fatal) is not None:
            kind = str(self.site.host.accelerator.kind)
            self._excuse = excuses(kind, [self.said.splitlines()]).get(alarm.name, "")

    @property
    def _may_reset(self) -> bool:
        """At any time: labels are written, or a wizard is through. It still has to say that it is done."""
        return True

    def alive(self, machine: Machine, *more: object) -> None:
        try:
            super().alive(machine, *more)
        except Over as over:
            if over.outcome is InstallOutcome.STALLED and self._unheard(machine):
                what = f"nothing tells whether what was typed has arrived: {over.detail}"
                raise Over(InstallOutcome.UNPROVEN, what) from over
            raise

    def _power_off(self, machine: Machine) -> str:
        """Of a machine that is cut off, file systems and TPM are not what a later boot of it would find."""
        seconds = POWER_OFF_SECONDS * self.site.patience
        for _ in range(_PRESSES):
            # Who is to hear the button may not have been there yet.
            try:
                if machine.power_off(seconds):
                    return ""
            except QmpFailed:
                # It may just have gone down by itself.
                with suppress(GuestFailed):
                    machine.check_guest()
                if machine.ended != "guest-shutdown":
                    raise
                return ""
        return f"the power button was pressed {_PRESSES} times, and it was not off {seconds:.0f} s later"

    def _answer(self, machine: Machine, talk: Dialogue, step: InstallStep) -> None:
        self._step = step
        self._times = 0 if step.screen or step.send is None else 1
        self._note(machine)
        super()._answer(machine, talk, step)

    def _note(self, machine: Machine) -> None:
        self._typed_at = machine.elapsed
        self._then = (machine.serial.spoken, machine.writes(), self._digest)

    def _came(self, machine: Machine) -> list[str]:
        """Lines of the serial console since something was typed, the unfinished last one included, without what was
        typed: until the echo is off it comes back, and is thrown away for all that."""
        typed = (self._step.send or "") if self._step is not None else ""
        size = min(machine.serial.spoken - self._then[0], PIECE)
        text = strip_escapes(machine.serial.tail(size)) if size > 0 else ""
        lines = (line.strip().removesuffix(typed.strip()).strip() for line in re.split(r"[\r\n]+", text))
        return [line for line in lines if line]

    def _unheard(self, machine: Machine) -> bool:
        """Whether nothing but the prompt and what a kernel says by itself has come since something was typed."""
        step = self._step
        if step is None:
            return False
        if step.screen and self._digest != self._then[2]:
            return False
        expect = re.compile(step.expect)
        return all(_KERNEL.match(line) or expect.search(line) for line in self._came(machine))

    def _still(self, machine: Machine, talk: Dialogue, *, on_screen: bool) -> None:
        waited = machine.elapsed - self._typed_at >= AGAIN_SECONDS * self.site.patience
        if on_screen or self._times in (0, _TIMES) or not waited or self._step is None:
            return
        if machine.writes() != self._then[1] or self._came(machine):
            return
        self._times += 1
        self._note(machine)
        self._type(talk, self._step.send or "")
