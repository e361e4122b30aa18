"""One boot at its console, serial or screen: what it shows, what is typed, what comes of it, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from pytest_osgates.checks.tpm_model import (
    BLANK,
    PIN,
    PROBE,
    Answer,
    KeySeen,
    Outcome,
    SysrqSeen,
    TpmPolicy,
    Try,
)
from pytest_osgates.data import load
from pytest_osgates.vm.dialogue import Dialogue, Heard, Line, Sign
from pytest_osgates.vm.errors import GuestFailed, QmpFailed
from pytest_osgates.vm.screen_line import SHOWN_SECONDS

# A word that is no passphrase, and that a shell answers with another one than is typed.
PROBE_TEXT = "echo osgates-$((6*7))"
_PROBE_ANSWER = Sign("shell", re.compile(r"(?:^|\s)osgates-42(?:\s|$)"))
# After which nothing but a new boot leads to a prompt.
_CORNER = frozenset({"locked", "password", "emergency"})
_ENDS = ("shell", "login", "locked", "password", "emergency", "stopped")
# What it asks for: never is the one typed at the other's prompt.
_PROMPTS = ("pin", "prompt")
_FIRST = (*_ENDS, *_PROMPTS)
_AFTER = (*_ENDS, "refused", *_PROMPTS)
_PIN_WHY = ("bad-pin", "lockout")
_PIN_REFUSED = (*_PIN_WHY, "reason")
# At a prompt for the PIN that does not go away.
_MOST_PINS = 10
# Until a line without its newline is looked at (`Dialogue`), and a little more.
STAND_SECONDS = 1.5
_RIGHT = {"shell": Answer.SHELL, "login": Answer.OPENED, "refused": Answer.REFUSED, "stopped": Answer.STOPPED}
# Whoever asks throws away what was typed before it turned the echo off: typed again, where nothing came of it.
AGAIN_SECONDS = 60.0
_TRIES = 3
# In which the kernel answers to SysRq: its interrupt is all that it takes.
SYSRQ_SECONDS = 15.0
# After its word that an operation is disabled.
DISABLED_SECONDS = 2.0
# In which a shell answers.
CORNER_SECONDS = 20.0


# What the journal is asked, and how its end is told from the echo of the command: it is typed in single quotes, and
# has none itself. A screen has room for a few lines, and what has left it is not seen: the first that say why, for
# there is more about the TPM later on.
_JOURNAL = {
    "serial": "journalctl --boot --no-pager --output=cat"
    ' | grep -i -e tpm -e unseal -e lockout -e "pin\\." -e "signature for this" -e "pcr signature" | tail -n 200',
    "screen": "journalctl --boot --no-pager --output=cat | grep -i"
    ' -e unseal -e "policy digest" -e "did not unlock" -e lock-*out -e "no tpm2* [dhm]" -e "tpm2* [pdo].*[nfmg]"'
    ' -e "tpm2 support is" -e "to [au].*tpm"'
    ' -e "into tpm" -e tpm: -e "integrity check" -e "bad pin" -e "this pin" -e "pin unlock" -e "hmac check"'
    ' -e "signature for this" -e "pcr signature"'
    " | cut -c1-150 | head -n 6",
}
_JOURNAL_END = "echo osgates-journal-$((6*7))"


def journal_line(login: Login, console: str) -> str:
    """What is typed at the guest's shell, so that its journal says why the TPM did not unlock the disk."""
    return f"{login.become or 'sh'} -c '{_JOURNAL[console]}'; {_JOURNAL_END}"


_LOGIN_SIGNS = (
    Sign("end", re.compile(r"^osgates-journal-42$")),
    Sign("incorrect", re.compile(r"[Ll]ogin incorrect|Permission denied|[Ss]orry, try again")),
    Sign("secret", re.compile(r"[Pp]assword[^\r\n]{0,40}: ?$")),
)


@dataclass(frozen=True)
class Login:
    """Who may read the journal; `become`: what starts a shell as root, empty for root itself."""

    user: str
    password: str = field(default="", repr=False)
    become: str = ""


@dataclass(frozen=True)
class Phrases:
    """What is typed: `guesses` by name, and the passphrase."""

    guesses: dict[str, str] = field(repr=False)
    right: str = field(repr=False)
    pin: str = field(default="", repr=False)
    wrong_pins: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, policy: TpmPolicy, right: str, pin: str = "") -> Phrases:
        """As the profile says."""
        texts = {PROBE: PROBE_TEXT, BLANK: ""}
        texts |= {f"wrong {number}": text for number, text in enumerate(policy.wrong, 1)}
        return cls(texts, right, pin, tuple(zip(policy.pin_guesses(), policy.wrong_pins, strict=True)))

    def pins(self, which: str = "right", *, once: bool = False) -> tuple[tuple[str, str], ...]:
        """PINs to be typed one after the other, by name, as long as one is asked for. None where there is no PIN."""
        if not self.pin:
            return ()
        words = self.wrong_pins if which == "wrong" else ((PIN, self.pin),)
        return words if once else (*words, *words[-1:] * (_MOST_PINS - len(words)))


def signs(policy: TpmPolicy) -> tuple[Sign, ...]:
    """``data/unlock_console.toml``, for the screen ``data/unlock_screen.toml`` as well, and what the profile adds.
    The most telling first."""
    names = ["unlock_console", *(["unlock_screen"] if policy.console == "screen" else [])]
    rows = [Sign(str(row["sign"]), re.compile(row["regex"])) for name in names for row in load(name)["line"]]
    order = list(dict.fromkeys(sign.name for sign in rows))
    rows.sort(key=lambda sign: order.index(sign.name))
    if policy.login is not None:
        rows = [sign for sign in rows if sign.name != "login"]
        place = next(number for number, sign in enumerate(rows) if sign.name != "shell")
        rows.insert(place, Sign("login", re.compile(policy.login)))
    place = next(number for number, sign in enumerate(rows) if sign.name == "prompt")
    rows[place:place] = [Sign("prompt", re.compile(text)) for text in policy.prompts]
    place = next(number for number, sign in enumerate(rows) if sign.name == "pin")
    rows[place:place] = [Sign("pin", re.compile(text)) for text in policy.pin_prompts]
    return (_PROBE_ANSWER, *_LOGIN_SIGNS, *rows)


class Screen(Protocol):
    """What a picture may hide."""

    @property
    def exact(self) -> bool:
        """Whether the last picture was read exactly."""
        ...

    @property
    def asking(self) -> bool:
        """Whether a prompt was on the last picture."""
        ...


class Talk:
    """With one machine. `alive` raises GuestFailed once the guest is gone, and HostError where that is the host's
    fault; `left`: seconds until the boot's deadline; `patience`: how much longer everything takes here; `pins`: what
    is typed, by name, where a PIN is asked for; `screen`: where `console` is one."""

    def __init__(
        self,
        console: Line,
        policy: TpmPolicy,
        alive: Callable[[], None],
        left: Callable[[], float],
        patience: float,
        pins: Sequence[tuple[str, str]] = (),
        screen: Screen | None = None,
    ) -> None:
        self._screen = screen
        self._words = list(pins)
        self._tried: list[Try] = []
        self._left = left
        self._patience = patience
        self._settle = policy.settle_s * patience
        self._stand = 2 * SHOWN_SECONDS * patience + 1.0 if policy.console == "screen" else 0.0
        self._console_kind = policy.console
        # Whenever it comes, before the passphrase was typed: it is a way in.
        self._dialogue = Dialogue(console, signs(policy), alive, kept=("shell", "login"))
        self._gone = ""
        self._early: tuple[Heard, ...] = ()
        self._journal: dict[str, str] | None = None

    @property
    def lost(self) -> int:
        """Bytes that nobody looked at."""
        return self._dialogue.lost

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the TPM did not unlock the disk, in the guest's words."""
        line = self.said("reason")
        return (line,) if line else ()

    @property
    def pins(self) -> tuple[Try, ...]:
        """PINs that were typed."""
        return tuple(self._tried)

    def said(self, name: str) -> str:
        """A line with this sign, where the reason is to be looked for; empty: none."""
        if self._journal is not None:
            return self._journal.get(name, "")
        heard = self._dialogue.ever.get(name)
        return "" if heard is None else heard.line

    def outcome(self) -> tuple[Outcome, str]:
        """What the boot comes to by itself, or once PINs were typed that it asked for, and the line that says so."""
        heard = self._through_pins(self._wait(_FIRST, self._left()))
        if heard is None:
            return (Outcome.ENDED, self._gone) if self._gone else (Outcome.TIMEOUT, "")
        if heard.name in _CORNER:
            answer, line = self._corner(heard)
            self._tried[-1:] = [last.model_copy(update={"answer": answer, "line": line}) for last in self._tried[-1:]]
            outcomes = {
                Answer.SHELL: (Outcome.SHELL, line),
                # Enter has made it go on.
                Answer.OPENED: (Outcome.UNLOCKED, line),
                Answer.LOCKED: (Outcome.LOCKED, line),
            }
            return outcomes.get(answer, (Outcome.EMERGENCY, heard.line))
        return {
            "shell": Outcome.SHELL,
            "login": Outcome.UNLOCKED,
            "stopped": Outcome.STOPPED,
            "prompt": Outcome.ASKED,
            "pin": Outcome.PIN,
        }[heard.name], heard.line

    def guess(self, what: str, text: str) -> Try:
        """Type a wrong passphrase at the prompt."""
        if (stuck := self._not_asked(what)) is not None:
            return stuck
        begun = time.monotonic()
        heard = self._type(text)
        answer, line = self._decided(heard)
        return Try(what=what, answer=answer, line=line, seconds=round(time.monotonic() - begun, 1))

    def unlock(self, text: str) -> Try:
        """Type the passphrase, and wait for the login. One that was there before is no work of the passphrase's."""
        if (stuck := self._not_asked("right")) is not None:
            return stuck
        begun = time.monotonic()
        heard = self._type(text, ignoring=_PROMPTS)
        if self._early:
            answer = Answer.SHELL if self._early[0].name == "shell" else Answer.EARLY
            return Try(what="right", answer=answer, line=self._early[0].line, early=True)
        if heard is not None and heard.name == "refused":
            later = self._wait(("shell", "login"), self._settle)
            heard = later or heard
        if heard is None:
            answer, line = (Answer.ENDED, self._gone) if self._gone else (Answer.TIMEOUT, "")
        elif heard.name in _CORNER:
            # That it was refused may have led there.
            refused = self._dialogue.heard("refused")
            answer, line = (Answer.LOCKED, heard.line) if refused is None else (Answer.REFUSED, refused.line)
        else:
            answer, line = _RIGHT[heard.name], heard.line
        return Try(what="right", answer=answer, line=line, seconds=round(time.monotonic() - begun, 1))

    def press(self, press: Callable[[str], None], keys: Sequence[str]) -> SysrqSeen:
        """SysRq at the prompt, with each of `keys`, and what came of it. Nothing else is typed, but in a corner.

        Only the first of them that does something is pressed, and watched as long as a shell may take: the next one
        would end whoever comes because of it.
        """
        pressed: list[KeySeen] = []
        heard = None
        for key in keys:
            self._dialogue.turn()
            if not self._press(press, key):
                heard = self._last_words(_ENDS)
                break
            done, off = f"sysrq-{key}", "sysrq-off"
            heard = self._wait((*_ENDS, done, off), min(self._left(), SYSRQ_SECONDS * self._patience))
            if heard is not None and heard.name == off:
                # Before it, maybe, there was what the key does: another one's late answer is none of this one's.
                heard = self._wait((*_ENDS, done), min(self._left(), DISABLED_SECONDS * self._patience)) or heard
            said = self._dialogue.heard(done) or self._dialogue.heard(off)
            pressed.append(KeySeen(key=key, line="" if said is None else said.line))
            if self._gone or (heard is not None and heard.name != off):
                break
        if not self._gone and (heard is None or heard.name not in _ENDS):
            # What was killed is missed by somebody: a shell may come for that, or the prompt once more.
            heard = self._wait(_ENDS, min(self._left(), self._settle))
        if heard is None or heard.name not in _ENDS:
            answer, line = (Answer.ENDED, self._gone) if self._gone else (Answer.ASKED_AGAIN, "")
        elif heard.name in _CORNER:
            answer, line = self._corner(heard)
        else:
            answers = {"shell": Answer.SHELL, "login": Answer.OPENED, "stopped": Answer.STOPPED}
            answer, line = answers[heard.name], heard.line
        return SysrqSeen(keys=tuple(pressed), answer=answer, line=line)

    def _press(self, press: Callable[[str], None], key: str) -> bool:
        """Whether it could be pressed; not, if the guest is gone."""
        try:
            press(key)
        except GuestFailed as error:
            self._gone = self._gone or error.what
        except QmpFailed:
            # Whose fault that is, is for `alive` to say.
            self._wait((), 1.0)
            if not self._gone:
                raise
        return not self._gone

    def ask_journal(self, login: Login) -> None:
        """Once the login is there: from here on it is the journal that must say why."""
        self._journal = {}
        if not self._say(login.user, forget=True):
            return
        heard = self._wait(("incorrect", "secret", "shell"), self._settle)
        if heard is not None and heard.name == "secret" and self._say(login.password, forget=True):
            heard = self._wait(("incorrect", "secret", "shell"), self._settle)
        if heard is None or heard.name != "shell":
            return
        if not self._say(journal_line(login, self._console_kind), forget=True):
            return
        heard = self._wait(("end", "incorrect", "secret"), self._settle)
        if heard is not None and heard.name == "secret" and self._say(login.password):
            self._wait(("end", "incorrect"), self._settle)
        for name in _PIN_REFUSED:
            if (found := self._dialogue.heard(name)) is not None:
                self._journal[name] = found.line

    # -- PINs

    def _asked(self) -> Heard | None:
        """What it asks for now: by the prompt that came last, and stands."""
        # A picture that has not stood still proves nothing of what is typed.
        stand = max(self._stand, STAND_SECONDS if self._dialogue.latest(("pin",)) is not None else 0.0)
        if stand:
            self._wait((), stand)
        return self._dialogue.latest(_PROMPTS)

    def _through_pins(self, heard: Heard | None) -> Heard | None:
        """Type PINs as long as one is asked for. What came in the end; the prompt for the PIN: there is none left."""
        while heard is not None and heard.name in _PROMPTS:
            heard = self._asked() or heard
            if heard.name != "pin" or not self._words:
                break
            heard = self._try_pin(*self._words.pop(0))
        return heard

    def _try_pin(self, what: str, text: str) -> Heard | None:
        begun = time.monotonic()
        heard = self._type(text, ignoring=("refused",))
        answer = Answer.TIMEOUT
        if heard is not None and heard.name in _PROMPTS:
            answer = Answer.REFUSED
            heard = self._asked() or heard
            if heard.name == "pin" and all(self._dialogue.heard(name) is None for name in _PIN_REFUSED):
                # It may only have been written anew, while the PIN is still tried.
                then = self._wait((*_ENDS, *_PIN_REFUSED, "prompt"), self._settle)
                if then is None:
                    answer = Answer.ASKED_AGAIN
                elif then.name in _ENDS:
                    heard = then
        if heard is None or (self._gone and heard.name in _PROMPTS):
            answer, line = (Answer.ENDED, self._gone) if self._gone else (Answer.TIMEOUT, "")
            heard = None
        else:
            line = heard.line
            if heard.name in _ENDS:
                ends = {"shell": Answer.SHELL, "login": Answer.OPENED, "stopped": Answer.STOPPED}
                answer = ends.get(heard.name, Answer.TIMEOUT)
        if self._early:
            answer = Answer.SHELL if self._early[0].name == "shell" else Answer.EARLY
            line = self._early[0].line
        seconds = round(time.monotonic() - begun, 1)
        self._tried.append(
            Try(
                what=what,
                answer=answer,
                line=line,
                seconds=seconds,
                early=bool(self._early),
                why=tuple(name for name in _PIN_WHY if self._dialogue.heard(name) is not None),
            )
        )
        return heard

    def _not_asked(self, what: str) -> Try | None:
        """Why no passphrase can be typed: it asks for the PIN, and goes on; or something else has come."""
        asked = self._asked()
        if asked is None or asked.name == "prompt":
            return None
        heard = self._through_pins(asked)
        if heard is not None and heard.name == "prompt":
            return None
        if heard is not None and heard.name == "pin":
            return Try(what=what, answer=Answer.TIMEOUT, line=heard.line)
        answer, line = self._decided(heard)
        return Try(what=what, answer=answer, line=line)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _type(self, text: str, ignoring: Collection[str] = ()) -> Heard | None:
        """What comes of it; typed again as long as nothing at all does."""
        names = tuple(name for name in _AFTER if name not in ignoring)
        for number in range(_TRIES):
            said = self._say(text)
            if not number:
                self._early = self._dialogue.before
            if not said:
                return None
            heard = self._wait(names, min(self._left(), AGAIN_SECONDS * self._patience))
            if heard is not None or self._gone:
                return heard
            if self._dialogue.lines or (self._screen is not None and not self._screen.asking):
                # It is at work, without a word perhaps: what is typed now would be read by somebody else.
                break
        return self._wait(names, self._left())

    def _decided(self, heard: Heard | None) -> tuple[Answer, str]:
        """What a wrong passphrase came to. That it asks again is no refusal: the prompt may only have been written
        anew, while the passphrase is still tried."""
        if heard is None:
            return (Answer.ENDED, self._gone) if self._gone else (Answer.TIMEOUT, "")
        refused = heard.name == "refused"
        if refused:
            then = self._wait(tuple(name for name in _FIRST), self._left())
            if then is None:
                return (Answer.ENDED, self._gone) if self._gone else (Answer.TIMEOUT, heard.line)
            heard = then
        elif heard.name in _PROMPTS:
            then = self._wait(tuple(name for name in _AFTER if name not in _PROMPTS), self._settle)
            if then is None:
                return (Answer.ENDED, self._gone) if self._gone else (Answer.ASKED_AGAIN, heard.line)
            if then.name != "refused":
                heard = then
        if heard.name in _CORNER:
            return self._corner(heard)
        return {
            "shell": Answer.SHELL,
            "login": Answer.OPENED,
            "stopped": Answer.STOPPED,
            "prompt": Answer.REFUSED,
            "pin": Answer.REFUSED,
        }[heard.name], heard.line

    def _corner(self, heard: Heard) -> tuple[Answer, str]:
        """An emergency: whoever presses Enter, or tries a command, must get no shell."""
        closed = heard if heard.name != "emergency" else None
        exact = self._exact()
        incorrect = False
        for text in ("", PROBE_TEXT, PROBE_TEXT):
            if not self._say(text):
                break
            said = self._wait(("shell", "login"), CORNER_SECONDS * self._patience)
            if said is not None:
                return (Answer.SHELL if said.name == "shell" else Answer.OPENED), said.line
            closed = closed or self._dialogue.ever.get("locked") or self._dialogue.ever.get("password")
            exact = exact and self._exact()
            answer = self._dialogue.heard("incorrect")
            incorrect = incorrect or (answer is not None and "login incorrect" in answer.line.casefold())
            if self._gone:
                break
        # OCR may not have read the answer of a shell: silence says nothing there.
        if closed is not None and (exact or incorrect or "locked" in self._dialogue.ever):
            return Answer.LOCKED, closed.line
        return (Answer.ENDED, self._gone) if self._gone else (Answer.TIMEOUT, heard.line)

    def _exact(self) -> bool:
        return self._screen is None or self._screen.exact

    def _say(self, text: str, *, forget: bool = False) -> bool:
        try:
            self._dialogue.say(text, forget=forget)
        except OSError as error:
            self._gone = self._gone or f"the console is gone: {error.strerror}"
            # Whose fault that is, is for `alive` to say.
            self._wait((), 1.0)
            return False
        return True

    def _wait(self, names: Sequence[str], seconds: float) -> Heard | None:
        if self._gone:
            return None
        try:
            return self._dialogue.wait(names, max(0.0, seconds))
        except GuestFailed as error:
            self._gone = error.what
            return self._last_words(names)

    def _last_words(self, names: Sequence[str]) -> Heard | None:
        """Of a machine that is gone."""
        with suppress(GuestFailed):
            return self._dialogue.wait(names, 0.0)
        return None
