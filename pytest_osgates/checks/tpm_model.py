"""What the gate `tpm` sees and what it is told to demand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pytest_osgates.data import load
from pytest_osgates.model import Contradiction, Model, Observation, Policy, State

UNTAMPERED = "untampered"
# What is typed first: nothing at all, and a word that a shell would answer. Neither is ever a passphrase.
BLANK, PROBE = "blank", "shell probe"
# The right ones.
RIGHT, PIN = "right", "PIN"


class PcrSource(Model):
    """A PCR that sees a tamper, what of it, and where that is written."""

    pcr: int = Field(ge=0, le=23)
    what: str
    source: str


What = Literal["disk", "variables", "tpm", "machine", "pin", "keyboard", "image", "load-options"]


class OnImages(Model):
    """What a tamper is on a disk whose kernels and initrds are in unified kernel images alone: what is changed then,
    and which PCRs see it. `ignored`: who starts the image need not listen, and so it may unlock."""

    changes: tuple[What, ...] = Field(min_length=1)
    pcrs: tuple[PcrSource, ...] = Field(min_length=1)
    ignored: bool = False


class Tamper(Model):
    """A row of ``data/tampers.toml``."""

    name: str
    title: str
    how: str
    changes: tuple[What, ...] = Field(min_length=1)
    sealed: Literal["tpm", "pcrs"]
    pcrs: tuple[PcrSource, ...] = ()
    needs: Literal["", "other_kernel", "other_loader", "uki_key"] = ""
    undo: bool
    why_not: str = ""
    required: bool
    parameter: str = Field(default="", pattern=r"^[A-Za-z0-9_.,=:/ -]{0,200}$")
    after: Literal["login", "shell"] = "login"
    locked: bool = False
    pin: Literal["", "wrong", "right"] = ""
    uki: OnImages | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.sealed == "pcrs") is not bool(self.pcrs):
            raise ValueError(f"{self.name}: PCRs are named where they, and only they, tell")
        if self.undo is bool(self.why_not):
            raise ValueError(f"{self.name}: why_not is for what cannot be undone")
        return self

    @property
    def ignored(self) -> bool:
        """Whether who is handed the change need not listen."""
        return self.uki is not None and self.uki.ignored and self.changes == self.uki.changes


@cache
def tampers() -> Mapping[str, Tamper]:
    """All that are known, in the order of the file."""
    rows = [Tamper.model_validate(row) for row in load("tampers")["tamper"]]
    return MappingProxyType({row.name: row for row in rows})


@cache
def required_tampers() -> tuple[str, ...]:
    """Those that every profile resists."""
    return tuple(name for name, row in tampers().items() if row.required)


@cache
def pin_tampers() -> tuple[str, ...]:
    """Those that every profile with a PIN resists as well, and no other can."""
    return tuple(name for name, row in tampers().items() if row.pin)


class Outcome(StrEnum):
    """What a boot came to before anything but PINs was typed."""

    UNLOCKED = "unlocked"  # the login prompt, and it asked for no passphrase
    ASKED = "asked"  # the prompt for the passphrase
    PIN = "asked for the PIN"  # and there was none left to be typed
    SHELL = "shell"  # commands are taken
    EMERGENCY = "emergency"  # it gave up without asking
    LOCKED = "locked"  # it gave up without asking, and nobody gets a shell
    STOPPED = "stopped"  # firmware, boot loader or kernel gave up
    GRUB = "GRUB"  # ended there, before anything was booted: see `BootSeen.grub`
    ENDED = "ended"  # it switched itself off
    TIMEOUT = "timeout"  # none of these before the deadline


class Answer(StrEnum):
    """What a passphrase that was typed came to."""

    REFUSED = "refused"  # it said so, and asks again
    ASKED_AGAIN = "asked again"  # it asks again, and nothing else came of it in the time that unlocking takes
    LOCKED = "locked"  # an emergency in which nobody gets a shell
    OPENED = "opened"  # the login prompt
    EARLY = "too early"  # the login prompt, which was there before the passphrase was typed
    SHELL = "shell"
    STOPPED = "stopped"
    ENDED = "ended"
    TIMEOUT = "timeout"


# What refuses a passphrase.
REFUSALS = frozenset({Answer.REFUSED, Answer.ASKED_AGAIN, Answer.LOCKED})


class Try(Model):
    """A passphrase or a PIN that was typed. `what`: blank, shell probe, wrong N, or right; of PINs: wrong PIN N, PIN.
    `line`: by which it was decided. `early`: what decided it was there before anything was typed. `why`: what was
    said of a PIN since it was typed, "bad-pin" or "lockout"."""

    what: str
    answer: Answer
    line: str = ""
    seconds: float = 0.0
    early: bool = False
    why: tuple[str, ...] = ()


class GrubSeen(Model):
    """What keys came to at GRUB. `menu`: the row by which it was known; `command_line`, `editor`: what came of the
    key for each of them, `*_locked` where that wants a password first. `parameter`: what was typed at the end of the
    kernel's line, `line`: how that line stood in the editor then, `booting`: GRUB's word that it carries out what
    stands there. `commands`: typed besides, before anything could be seen. `missed`: what did not come."""

    menu: str = ""
    command_line: str = ""
    command_line_locked: bool = False
    editor: str = ""
    editor_locked: bool = False
    parameter: str = ""
    line: str = ""
    booting: str = ""
    commands: tuple[str, ...] = ()
    missed: str = ""
    shown: tuple[str, ...] = ()


class KeySeen(Model):
    """A key pressed with Alt and SysRq. `line`: the kernel's answer; empty: none."""

    key: str
    line: str = ""


class SysrqSeen(Model):
    """What SysRq came to at the prompt. `answer`: of all keys, "asked again" where the prompt may still stand."""

    keys: tuple[KeySeen, ...] = ()
    answer: Answer = Answer.TIMEOUT
    line: str = ""


class BootSeen(Model):
    """One boot without the guest channel. `at`: seconds after power-on; `reasons`: lines that say why the TPM did not
    unlock the disk; `screen`: lines on the other of screen and serial console that look like a shell, before the
    passphrase was typed; `lost`: bytes of the console that nobody looked at; `pins`: typed at the prompt for the PIN;
    `bad_pin`, `lockout`: lines that say that a PIN was wrong, that the TPM is in dictionary attack lockout;
    `command_lines`: the kernel's, as the console says."""

    role: Literal["untampered", "tampered", "twin", "undone"]
    outcome: Outcome
    line: str = ""
    at: float = 0.0
    tries: tuple[Try, ...] = ()
    reasons: tuple[str, ...] = ()
    screen: tuple[str, ...] = ()
    pins: tuple[Try, ...] = ()
    bad_pin: str = ""
    lockout: str = ""
    grub: GrubSeen | None = None
    sysrq: SysrqSeen | None = None
    lost: int = 0
    command_lines: tuple[str, ...] = ()
    records: str = ""
    console: tuple[str, ...] = ()


class Change(Model):
    """What a tamper changed: `before` and `after` are digests, or words. `besides`: what else on the disk may be what
    boots, and was not changed."""

    what: str
    before: str
    after: str
    besides: str = ""


class TpmSlot(Model):
    """A token by which a TPM opens the disk: `pcrs` of its policy and of a signed policy."""

    subject: str
    pcrs: tuple[int, ...]
    signed_pcrs: tuple[int, ...] = ()
    bank: str = ""
    pin: bool = False
    pcrlock: bool = False

    @property
    def bound(self) -> frozenset[int]:
        return frozenset((*self.pcrs, *self.signed_pcrs))


class TpmObservation(Observation):
    """One row: copies of disk, variables and TPM, changed while off, and what their boots showed. `others`: what may
    open the disk besides the slots. `talked_on`: where it was looked at, and typed. `reason_from`: where the reasons
    were looked for. `error`: why the tamper could not be made or undone."""

    case: str
    state: State
    tamper: str
    changes: tuple[Change, ...] = ()
    slots: tuple[TpmSlot, ...] = ()
    others: tuple[str, ...] = ()
    boots: tuple[BootSeen, ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    talked_on: Literal["serial", "screen"] = "serial"
    reason_from: str = "console"
    accelerator: str = ""
    deadline_s: float = 0.0
    pace: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    error: str = ""

    @property
    def considered(self) -> int | None:
        return len(self.boots)

    @property
    def besides(self) -> str:
        """What else on the disk may be what boots."""
        return next((change.besides for change in self.changes if change.besides), "")


def _compiles(pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if compiled.search(""):
        raise ValueError("a pattern that fits an empty line fits anything")
    return pattern


def _typed(text: str) -> str:
    if not text.isprintable() or len(text) > 512:
        raise ValueError("one line of printable text, at most 512 characters")
    return text


Regex = Annotated[str, AfterValidator(_compiles)]
Typed = Annotated[str, AfterValidator(_typed)]
Pcr = Annotated[int, Field(ge=0, le=23)]


class TpmPolicy(Policy):
    """``[gate.tpm]`` of a distro profile. Seconds."""

    pcrs: tuple[Pcr, ...] = Field(min_length=1)
    tampers: tuple[str, ...] = Field(default_factory=required_tampers)
    untampered: int = Field(default=3, ge=3, le=100)
    passphrase: Typed = Field(default="", repr=False)
    passphrase_env: str = Field(default="OSGATES_PASSPHRASE", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    wrong: tuple[Typed, ...] = ()
    pin: Typed = Field(default="", repr=False)
    pin_env: str = Field(default="", pattern=r"^(?:[A-Za-z_][A-Za-z0-9_]*)?$")
    wrong_pins: tuple[Typed, ...] = Field(default=("000000",), min_length=1)
    pin_prompts: tuple[Regex, ...] = ()
    prompts: tuple[Regex, ...] = ()
    login: Regex | None = None
    console: Literal["serial", "screen"] = "serial"
    reason: Literal["console", "journal"] = "console"
    accept_no_sysrq: str = ""
    other_kernel: str = ""
    other_initrd: str = ""
    other_loader: str = ""
    uki_key: str = ""
    uki_certificate: str = ""
    parameter: str = Field(default="osgates.tampered=1", pattern=r"^[A-Za-z0-9_.,=:/-]{1,100}$")
    settle_s: float = Field(default=60.0, ge=5)
    deadline_s: float = Field(default=900.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _rows_of_a_pin(cls, data: Any) -> Any:  # noqa: ANN401  (pydantic's signature)
        if isinstance(data, dict) and "tampers" not in data and (data.get("pin") or data.get("pin_env")):
            return {**data, "tampers": [*required_tampers(), *pin_tampers()]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("pcrs", "tampers", "wrong_pins"):
            entries = getattr(self, field)
            if len(set(entries)) < len(entries):
                raise Contradiction("an entry is there twice", [(field,)])
        if unknown := [name for name in self.tampers if name not in tampers()]:
            raise Contradiction(
                f"no tamper is called {', '.join(map(repr, unknown))}; there are: {', '.join(tampers())}",
                [("tampers",)],
            )
        if missing := [name for name in required_tampers() if name not in self.tampers]:
            raise Contradiction(
                f"no profile resists fewer than {', '.join(required_tampers())}; missing: {', '.join(missing)}",
                [("tampers",)],
            )
        self._check_pin()
        for tamper in (tampers()[name] for name in self.tampers):
            if tamper.needs and not getattr(self, tamper.needs):
                raise Contradiction(
                    f"{tamper.name} takes a file that only you have: {tamper.needs} names it", [("tampers",)]
                )
        if self.other_initrd and not self.other_kernel:
            raise Contradiction("other_initrd comes along with other_kernel", [("other_initrd",)])
        if bool(self.uki_key) is not bool(self.uki_certificate):
            raise Contradiction("uki_key and uki_certificate belong together", [("uki_key",), ("uki_certificate",)])
        if self.passphrase and self.passphrase in self.wrong:
            raise Contradiction("a wrong passphrase is the right one", [("wrong",), ("passphrase",)])
        return self

    def _check_pin(self) -> None:
        asked = [name for name in self.tampers if tampers()[name].pin]
        if self.has_pin and (missing := [name for name in pin_tampers() if name not in asked]):
            raise Contradiction(
                f"no profile with a PIN resists fewer than {', '.join(pin_tampers())} as well; missing: "
                f"{', '.join(missing)}",
                [("tampers",)],
            )
        if asked and not self.has_pin:
            raise Contradiction(f"{asked[0]} is for a slot with a PIN: pin or pin_env names it", [("tampers",)])
        if not self.has_pin:
            return
        if self.pin and self.pin in (self.passphrase, *self.wrong, *self.wrong_pins):
            where = [("pin",), ("passphrase",), ("wrong_pins",)]
            raise Contradiction("the PIN is a passphrase or a wrong one", where)
        if self.passphrase and self.passphrase in self.wrong_pins:
            raise Contradiction("no passphrase is typed at the PIN's prompt", [("wrong_pins",), ("passphrase",)])

    @property
    def has_pin(self) -> bool:
        """Whether the TPM's slots want one."""
        return bool(self.pin or self.pin_env)

    def rows(self) -> tuple[str, ...]:
        """The tests that make the gate."""
        return (*(f"{UNTAMPERED}-{number}" for number in range(1, self.untampered + 1)), *self.tampers)

    def pin_guesses(self) -> tuple[str, ...]:
        """The wrong PINs, by name."""
        return tuple(f"wrong PIN {number}" for number in range(1, len(self.wrong_pins) + 1))

    def guesses(self) -> tuple[str, ...]:
        """What is typed before the right passphrase, by name."""
        return (PROBE, BLANK, *(f"wrong {number}" for number in range(1, len(self.wrong) + 1)))


def tamper_of(case: str) -> Tamper | None:
    """What is done in a row; None: nothing.

    :raise KeyError: there is no such row.
    """
    if re.fullmatch(rf"{UNTAMPERED}-[1-9][0-9]*", case):
        return None
    return tampers()[case]


def as_made(tamper: Tamper, changes: Iterable[Change]) -> Tamper:
    """The tamper as it was on this disk: that of unified kernel images, where `changes` are its."""
    if tamper.uki is None or {change.what for change in changes} != set(tamper.uki.changes):
        return tamper
    return tamper.model_copy(update={"changes": tamper.uki.changes, "pcrs": tamper.uki.pcrs})


def opened(attempt: Try, tamper: Tamper) -> bool:
    """Whether the right passphrase let its owner in: to the login, or to what the tamper leads to after it."""
    if attempt.answer is Answer.OPENED:
        return True
    return tamper.after == "shell" and not attempt.early and attempt.answer in (Answer.SHELL, Answer.LOCKED)
