"""The gate `tpm`, one row: copies of disk, variables and TPM, changed while the machine is off, then booted.

No boot that is judged has the guest channel: its OEM strings are measured into PCR 1, and whoever is let in by it
proves nothing. What is seen comes from the serial console alone, or from the screen, where keys are pressed then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_osgates.checks import tpm_grub, tpm_sysrq
from pytest_osgates.checks.tpm_model import (
    Answer,
    BootSeen,
    Change,
    GrubSeen,
    Outcome,
    Tamper,
    TpmObservation,
    TpmPolicy,
    Try,
    as_made,
    opened,
    tamper_of,
)
from pytest_osgates.model import State
from pytest_osgates.observers.tpm_grub import type_at_grub
from pytest_osgates.observers.tpm_slots import slots
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Login, Phrases, Talk, signs
from pytest_osgates.observers.tpm_tamper import Workshop
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import MORE_ROOM, GuestFailed, HostError, QmpFailed, UsageError
from pytest_osgates.vm.home import Home, kept
from pytest_osgates.vm.host import Host
from pytest_osgates.vm.keyboard import keys_of
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.ocr import Reader, need
from pytest_osgates.vm.screen_line import ScreenLine
from pytest_osgates.vm.spec import MachineSpec
from pytest_osgates.vm.text import one_line, printable, strip_escapes

CONSOLE_LINES = 200
GLANCE_SECONDS = 5.0
_MOST_GLANCES = 20
_LINE = 300
_MOST_CONSOLE = 1 << 20
_MOST_COMMAND_LINE = 4096
_MOST_LINES = 4
Role = Literal["untampered", "tampered", "twin", "undone"]
Pins = Sequence[tuple[str, str]]
# A shorter one is in other words.
_SHORTEST_PIN = 4
# In these the prompt is still there.
_STILL_ASKED = frozenset({Answer.REFUSED, Answer.ASKED_AGAIN})


@dataclass(frozen=True)
class Row:
    """One row: `spec` makes a machine of a name, a home and whether it has a TPM, `records` a directory for one
    boot's, `say` tells how far it is, and the seconds since power-on; `login`: by whom the journal is read;
    `directory`: from which the files count that the profile names."""

    case: str
    policy: TpmPolicy
    phrases: Phrases
    spec: Callable[[str, Home, bool], MachineSpec]
    host: Host
    records: Callable[[str], Path]
    say: Callable[[str, float], None]
    login: Login | None = None
    directory: Path = Path()


def passphrase(policy: TpmPolicy) -> str:
    """What opens the installed disk.

    :raise UsageError: nobody says, or it is one that is typed as a wrong one.
    """
    text = policy.passphrase or os.environ.get(policy.passphrase_env, "")
    if not text:
        raise UsageError(
            f"the passphrase of the installed disk is not known: the variable {policy.passphrase_env} is not set",
            remedy=f"set {policy.passphrase_env}, or write passphrase into [gate.tpm] of the distro profile",
        )
    if text in (PROBE_TEXT, *policy.wrong, *(policy.wrong_pins if policy.has_pin else ())) or not text.isprintable():
        raise UsageError(
            "the passphrase of the installed disk is typed as a wrong one as well, or is not one line of text",
            remedy="correct passphrase and wrong in [gate.tpm] of the distro profile",
        )
    return text


def pin(policy: TpmPolicy) -> str:
    """What the slots for the TPM want as well; empty: the profile knows of no PIN.

    :raise UsageError: nobody says, or it is one that is typed as a wrong one or as a passphrase.
    """
    if not policy.has_pin:
        return ""
    text = policy.pin or os.environ.get(policy.pin_env, "")
    if not text:
        raise UsageError(
            f"the PIN of the installed disk is not known: the variable {policy.pin_env} is not set",
            remedy=f"set {policy.pin_env}, or write pin into [gate.tpm] of the distro profile",
        )
    if text in (PROBE_TEXT, passphrase(policy), *policy.wrong, *policy.wrong_pins) or not text.isprintable():
        raise UsageError(
            "the PIN of the installed disk is a passphrase, or typed as a wrong one as well, or not one line of text",
            remedy="correct pin, wrong_pins and wrong in [gate.tpm] of the distro profile",
        )
    return text


def observe(original: Home, row: Row, disk_sha256: str) -> TpmObservation:
    """Everything of one row that the gate judges. `original` stays what it is.

    :raise OsgatesError: it could not be observed: copies, tamper, or a machine of ours failed.
    """
    tamper = tamper_of(row.case)
    if row.policy.console == "screen":
        _check_screen(row)
    state = State.INSTALLED if tamper is None else State.TAMPERED
    deadline = row.policy.deadline_s * row.host.pace
    known = {"disk": disk_sha256, **original.digests()}
    found = slots(original.disk)
    changes: tuple[Change, ...] = ()
    with kept(original), _scratch() as scratch:
        home = original.copy(scratch / "machine")
        boots = _Boots(row, home, deadline)
        if tamper is None:
            seen: tuple[BootSeen, ...] = (boots.untouched("untampered", with_tpm=True),)
        else:
            row.say(f"tampering: {tamper.title}", 0.0)
            workshop = Workshop(
                original=original,
                home=home,
                firmware=row.spec("x", home, True).firmware,
                parameter=row.policy.parameter,
                scratch=scratch,
                log=row.records("tamper") / "swtpm.log",
                patience=row.host.pace,
                others={
                    key: row.directory / name
                    for key in ("other_kernel", "other_initrd", "other_loader")
                    if (name := getattr(row.policy, key))
                }
                | _owners(row, original),
            )
            changes = workshop.apply(tamper)
            seen = _tampered(row, boots, workshop, tamper, changes)
    return TpmObservation(
        case=row.case,
        state=state,
        tamper="" if tamper is None else tamper.name,
        changes=changes,
        slots=found.slots,
        others=found.others,
        boots=seen,
        digests=known,
        talked_on=row.policy.console,
        reason_from=row.policy.reason,
        accelerator=str(row.host.accelerator.kind),
        deadline_s=deadline,
        pace=row.host.pace,
    )


# Of the kernel's log (init/main.c, arch/x86/kernel/setup.c; kernel/printk/printk.c), or of an initrd that says it in
# the same words. Nothing else may stand before them: services have command lines as well.
_COMMAND_LINE = re.compile(
    r"^(?:<\d+>)?(?:\[ *\d+\.\d+\])?(?:\[ *[TC]\d+\])? ?(?:Kernel c|C)ommand line: (.*)$", re.MULTILINE
)


def command_lines(console: str) -> tuple[str, ...]:
    """The kernel's own command line, as often as the console says it differently."""
    told = {one_line(match[1], _MOST_COMMAND_LINE): None for match in _COMMAND_LINE.finditer(console)}
    return tuple(told)[:_MOST_LINES]


def _owners(row: Row, original: Home) -> dict[str, Path]:
    """The files of the key that signs unified kernel images: beside the profile, or else beside the disk."""
    named = {key: getattr(row.policy, key) for key in ("uki_key", "uki_certificate")}
    return {
        key: path if (path := row.directory / name).exists() else original.directory / name
        for key, name in named.items()
        if name
    }


def _check_screen(row: Row) -> None:
    """That pictures can be read, and all words be typed by keys, before anything is booted.

    :raise MissingTool: there is no OCR program.
    :raise UsageError: the US layout lacks a character.
    """
    need()
    words = row.phrases
    login = () if row.login is None else (row.login.user, row.login.password, row.login.become)
    for text in (words.right, words.pin, *words.guesses.values(), *(pin for _, pin in words.wrong_pins), *login):
        keys_of(text)


def _shoot(machine: Machine, name: str = "last") -> None:
    """The screen as it is, at the end for instance; a machine that is gone has none."""
    with suppress(QmpFailed, GuestFailed):
        picture = machine.screen.grab().png()
        path = machine.records / f"screen-{name}.png"
        try:
            path.write_bytes(picture)
        except OSError as error:
            raise HostError(f"evidence cannot be written to {path}: {error.strerror}", remedy=MORE_ROOM) from error


@contextmanager
def _scratch() -> Iterator[Path]:
    path = workdir.make("tpm")
    try:
        yield path
    finally:
        workdir.remove(path)


def _tampered(
    row: Row, boots: _Boots, workshop: Workshop, tamper: Tamper, changes: tuple[Change, ...]
) -> tuple[BootSeen, ...]:
    """Boots until every guess was refused and the passphrase was tried, then one with the tamper undone. Of a tamper
    that may be ignored, and was, a twin comes between them: it must be taken there."""
    with_tpm = tamper.how != "no-tpm"
    with_rom = tamper.how == "add-option-rom"
    pins = row.phrases.pins(tamper.pin or "right")
    pending = dict(row.phrases.guesses)
    found: list[BootSeen] = []
    keys = list(tpm_sysrq.KEYS) if tamper.how == tpm_sysrq.HOW else []
    # Each boot gets on by one guess or key at least, or is the last one.
    for _ in range(len(pending) + len(keys) + 1):
        boot = boots.asked(pending, pins, with_tpm=with_tpm, with_rom=with_rom, how=tamper.how, keys=keys)
        found.append(boot)
        keys = [key for key in keys if boot.sysrq is None or all(key != entry.key for entry in boot.sysrq.keys)]
        if tpm_sysrq.ended(boot) and keys and not boot.screen:
            continue
        if tpm_grub.barred(boot) or (tpm_sysrq.ended(boot) and not boot.screen):
            break
        if tamper.locked and boot.outcome is Outcome.LOCKED and not boot.screen:
            break
        if boot.outcome is Outcome.UNLOCKED and as_made(tamper, changes).ignored:
            row.say("making a twin with Secure Boot off", 0.0)
            workshop.make_twin(tamper)
            found.append(boots.untouched("twin", with_tpm=True))
            break
        if boot.outcome is not Outcome.ASKED or not _goes_on(boot, tamper):
            return tuple(found)
        if keys:
            # After each that does something all is typed anew: the prompt may stand, and nobody is behind it.
            continue
        for attempt in boot.tries:
            pending.pop(attempt.what, None)
        if boot.tries[-1].what == "right":
            break
    if tamper.undo and (not found[-1].tries or opened(found[-1].tries[-1], tamper)):
        workshop.undo(tamper)
        found.append(boots.untouched("undone", with_tpm=True))
    return tuple(found)


def _goes_on(boot: BootSeen, tamper: Tamper) -> bool:
    """Whether there is anything to learn from what follows."""
    if any(attempt.answer not in (*_STILL_ASKED, Answer.LOCKED) for attempt in boot.pins):
        return False
    return bool(boot.tries) and all(
        attempt.answer in (*_STILL_ASKED, Answer.LOCKED) or (attempt.what == "right" and opened(attempt, tamper))
        for attempt in boot.tries
    )


def _as_read(secret: str) -> re.Pattern[str]:
    return re.compile(r"[ \t]?".join(map(re.escape, secret)), re.IGNORECASE)


class _Glances:
    """At the screen, now and then, or at the serial console where the screen is talked to: a shell may be on another
    console."""

    def __init__(self, machine: Machine, policy: TpmPolicy) -> None:
        self._machine = machine
        self._talked_on = policy.console
        # Neither is read by OCR.
        exact = policy.model_copy(update={"console": "serial"})
        self._shells = tuple(sign.regex for sign in signs(exact) if sign.name == "shell")
        self._at = 0.0
        self._digest = ""
        self._on = True
        self.found: dict[str, None] = {}

    def look(self, *, now: bool = False) -> None:
        """If it is time for it, or `now`."""
        if not self._on or (self._machine.elapsed - self._at < GLANCE_SECONDS and not now):
            return
        self._at = self._machine.elapsed
        if self._talked_on == "screen":
            self._search(re.split(r"[\r\n]+", strip_escapes(self._machine.serial.tail(1 << 16))))
            return
        with suppress(QmpFailed, GuestFailed):
            frame = self._machine.screen.grab()
            if frame.digest == self._digest or not self._machine.lit(frame):
                return
            self._digest = frame.digest
            self._search(line.strip() for line in frame.text().splitlines())

    def _search(self, lines: Iterable[str]) -> None:
        for line in lines:
            if len(self.found) < _MOST_GLANCES and any(regex.search(line) for regex in self._shells):
                self.found[one_line(line, _LINE)] = None

    def end(self) -> None:
        """From now on there may be shells: whoever knows the passphrase is in."""
        self.look(now=True)
        self._on = False


class _Boots:
    """Powers the row's machine on, as often as it takes."""

    def __init__(self, row: Row, home: Home, deadline: float) -> None:
        self._row = row
        self._home = home
        self._deadline = deadline
        self._stage = ""
        self._line: ScreenLine | None = None
        # Resets until something was typed that the next start knows nothing of; None: they are of no interest.
        self._resets: int | None = None

    def untouched(self, role: Role, *, with_tpm: bool) -> BootSeen:
        """Nothing is typed but the PIN, once."""
        pins = self._row.phrases.pins(once=True)
        with self._machine(role, pins, with_tpm=with_tpm) as (machine, talk, glances):
            outcome, line = talk.outcome()
            glances.end()
            seen = self._seen(role, machine, talk, (outcome, line, machine.elapsed), ())
            return seen.model_copy(update={"screen": tuple(glances.found)})

    def asked(
        self,
        guesses: dict[str, str],
        pins: Pins = (),
        *,
        with_tpm: bool,
        with_rom: bool = False,
        how: str = "",
        keys: Sequence[str] = (),
    ) -> BootSeen:
        """`pins` are typed as long as it asks for one, `guesses` as long as it asks for the passphrase, then that.
        `how`: of the tamper, for what is done to a machine that runs; `keys`: for SysRq, at the prompt."""
        with self._machine("tampered", pins, with_tpm=with_tpm, with_rom=with_rom) as (machine, talk, glances):
            grub = self._at_grub(machine) if how == tpm_grub.HOW else None
            if grub is not None:
                self._resets = machine.resets
            if grub is None or (grub.booting and not grub.missed):
                outcome, line = talk.outcome()
            else:
                outcome, line = Outcome.GRUB, grub.missed or grub.editor
            at = machine.elapsed
            self._picture(machine, "asked")
            sysrq = None
            if outcome is Outcome.ASKED and keys:
                self._stage = "pressing SysRq"
                self._resets = machine.resets
                sysrq = talk.press(lambda key: machine.send_keys("alt", "sysrq", key), keys)
                # The TPM is a new one after it as well: it asks again.
                self._resets = None
            tries: list[Try] = []
            if outcome is Outcome.ASKED and (sysrq is None or sysrq.answer is Answer.ASKED_AGAIN):
                for what, text in guesses.items():
                    self._stage = f"typed a wrong passphrase ({what})"
                    tries.append(talk.guess(what, text))
                    self._picture(machine, f"typed-{len(tries)}")
                    if tries[-1].answer not in _STILL_ASKED:
                        break
                else:
                    glances.end()
                    self._stage = "typed the passphrase"
                    tries.append(talk.unlock(self._row.phrases.right))
                    if tries[-1].answer is Answer.OPENED and self._row.login is not None:
                        self._stage = "reading the journal"
                        talk.ask_journal(self._row.login)
            glances.end()
            seen = self._seen("tampered", machine, talk, (outcome, line, at), tuple(tries))
            return seen.model_copy(update={"screen": tuple(glances.found), "grub": grub, "sysrq": sysrq})

    def _at_grub(self, machine: Machine) -> GrubSeen:
        self._stage = "typing at GRUB"
        parameter = self._row.policy.parameter

        def alive() -> None:
            machine.check_guest()
            self._row.say(self._stage, machine.elapsed)

        seen = type_at_grub(machine, parameter, alive, lambda: self._deadline - machine.elapsed, self._row.host.pace)
        self._stage = "booting, tampered"
        return seen

    @contextmanager
    def _machine(
        self, role: Role, pins: Pins, *, with_tpm: bool, with_rom: bool = False
    ) -> Iterator[tuple[Machine, Talk, _Glances]]:
        row = self._row
        self._stage = f"booting, {role}"
        self._resets = None
        spec = replace(row.spec(f"tpm-{role}", self._home, with_tpm), option_rom=with_rom)
        with Machine(spec, row.host, row.records(role)) as machine:
            glances = _Glances(machine, row.policy)

            def alive() -> None:
                # A panic ends it as well: pvpanic says so.
                machine.check_guest()
                if self._resets is not None and machine.resets > self._resets:
                    raise GuestFailed("the guest reset the machine, and starts without what was typed")
                row.say(self._stage, machine.elapsed)
                glances.look()

            def left() -> float:
                return self._deadline - machine.elapsed

            self._line = self._screen_line(machine) if row.policy.console == "screen" else None
            line = self._line or machine.serial
            yield machine, Talk(line, row.policy, alive, left, row.host.pace, pins, self._line), glances

    def _screen_line(self, machine: Machine) -> ScreenLine:
        transcript = machine.records / "screen.log"
        known = signs(self._row.policy)
        hide = self._without_secrets
        return ScreenLine(machine, Reader(), known, patience=self._row.host.pace, transcript=transcript, hide=hide)

    def _picture(self, machine: Machine, name: str) -> None:
        """Where the screen is what is judged."""
        if self._line is not None:
            _shoot(machine, name)

    def _seen(
        self, role: Role, machine: Machine, talk: Talk, came_to: tuple[Outcome, str, float], tries: tuple[Try, ...]
    ) -> BootSeen:
        outcome, line, at = came_to
        _shoot(machine)
        shown = self._line or machine.serial
        lines = self._without_secrets(strip_escapes(shown.tail(1 << 16))).splitlines()
        return BootSeen(
            role=role,
            outcome=outcome,
            line=self._without_secrets(line),
            at=round(at, 1),
            tries=self._told(tries),
            pins=self._told(talk.pins),
            reasons=talk.reasons,
            bad_pin=talk.said("bad-pin"),
            lockout=talk.said("lockout"),
            lost=talk.lost,
            command_lines=command_lines(self._without_secrets(strip_escapes(machine.serial.tail(_MOST_CONSOLE)))),
            records=f"machines/{machine.records.name}",
            console=tuple(printable(text, _LINE) for text in lines[-CONSOLE_LINES:]),
        )

    def _told(self, tries: Sequence[Try]) -> tuple[Try, ...]:
        return tuple(attempt.model_copy(update={"line": self._without_secrets(attempt.line)}) for attempt in tries)

    def _without_secrets(self, text: str) -> str:
        """What a guest echoed; also with the blanks and the case that OCR makes of it."""
        phrases = self._row.phrases
        text = _as_read(phrases.right).sub("(the passphrase)", text)
        return _as_read(phrases.pin).sub("(the PIN)", text) if len(phrases.pin) >= _SHORTEST_PIN else text
