"""What keys at GRUB come to: whoever edits an entry is asked for a password by GRUB, or for the passphrase after it.

A hidden menu proves nothing: that nobody got there by these keys, at these moments, does not say that nobody can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from pytest_osgates.checks.tpm_model import BootSeen, GrubSeen, Outcome, TpmObservation
from pytest_osgates.model import Control, Severity

HOW = "type-at-grub"
NOT_REACHED, UNDECIDED = "grub-not-reached", "grub-undecided"
_UNPROVEN = Severity.UNPROVEN


class Told(NamedTuple):
    """A finding of this module, all of them NOT PROVEN: `rule`, what was seen and wanted, and what may help."""

    rule: str
    what: str
    wanted: str
    hint: str = ""


def edited(boot: BootSeen) -> bool:
    """Whether an entry was booted with what was typed into it: all of it was seen."""
    grub = boot.grub
    if grub is None or grub.missed or not (grub.menu and grub.editor and grub.booting and grub.parameter):
        return False
    return not grub.editor_locked and grub.parameter in grub.line.split()


def barred(boot: BootSeen) -> bool:
    """Whether GRUB lets nobody edit, or type commands, who has no password."""
    grub = boot.grub
    if boot.outcome is not Outcome.GRUB or grub is None or grub.missed or not grub.menu:
        return False
    return grub.editor_locked and grub.command_line_locked and not grub.booting


def told(boot: BootSeen) -> Iterable[Told]:
    """Why one boot of the row says nothing; none where it was edited, or GRUB wanted a password."""
    grub = boot.grub
    if edited(boot) and boot.outcome is not Outcome.GRUB:
        return
    if barred(boot):
        return
    if grub is None or not grub.menu:
        what = "no menu of GRUB's" if grub is None else f"no menu of GRUB's: {grub.missed or 'nothing was pressed'}"
        yield Told(
            NOT_REACHED,
            what,
            "GRUB's menu, to type there",
            "show it for the test: timeout_style=menu, a timeout of some seconds, terminal_input console and"
            " terminal_output console; a menu that is hidden is no protection",
        )
    elif grub.editor_locked is not grub.command_line_locked and not grub.missed:
        locked, open_ = ("editor", "command line") if grub.editor_locked else ("command line", "editor")
        yield Told(UNDECIDED, f"GRUB's {locked} wants a password, its {open_} does not", "one for both, or for none")
    else:
        yield Told(UNDECIDED, grub.missed or "an entry was not edited", "an entry edited and booted, all of it seen")


# -- controls

Sabotage = Callable[[TpmObservation], TpmObservation]


def controls(seen: TpmObservation) -> Iterable[Control[TpmObservation]]:
    """What of a boot at GRUB could have been seen wrongly."""
    case = seen.case
    yield Control("GRUB was not looked at", _grub(lambda grub: None), NOT_REACHED, case, _UNPROVEN)
    yield Control("GRUB's menu did not come", _grub(_without_menu), NOT_REACHED, case, _UNPROVEN)
    if any(barred(boot) for boot in seen.boots):
        spoilt: dict[str, dict[str, object]] = {"GRUB's command line is open": {"command_line_locked": False}}
    else:
        spoilt = {
            "what was typed is not there": {"line": "linux /vmlinuz"},
            "what was typed was not booted": {"booting": ""},
        }
    for name, changes in spoilt.items():
        yield Control(name, _grub(partial(GrubSeen.model_copy, update=changes)), UNDECIDED, case, _UNPROVEN)


def _without_menu(grub: GrubSeen) -> GrubSeen:
    return GrubSeen(parameter=grub.parameter, missed="a kernel runs")


def _grub(change: Callable[[GrubSeen], GrubSeen | None]) -> Sabotage:
    def one(boot: BootSeen) -> BootSeen:
        return boot if boot.grub is None else boot.model_copy(update={"grub": change(boot.grub)})

    return lambda seen: seen.model_copy(update={"boots": tuple(one(boot) for boot in seen.boots)})
