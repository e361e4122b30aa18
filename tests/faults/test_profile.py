"""What stands in a distro profile. Nothing is booted: what is wrong is said before that, with its line and key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Outcome
from tests.plugin.conftest import PROFILE

from .table import REFUSED, Fault, check, proves
from .warm import POWERLESS, Place

HEAD = 'schema = 1\nname = "bench"\n'
UNIT = '[[gate.settings.unit]]\nstate = "live"\nreason = "r"\nnames = ["a.service"]\n'
FAILS = """
def change(case, seen):
    if case == "kconfig":
        return kernel(check("CONFIG_X", "FAIL: y"))
    return seen.model_copy(update={"failures": (UnitFailure(unit="a.service", result="x", still_failed=True),)})
"""


def says(text: str | bytes) -> Callable[[Place], Outcome]:
    """A profile of these words."""

    def make(place: Place) -> Outcome:
        place.profile(text)
        return place.judge()

    return make


def changed(old: str, new: str) -> Callable[[Place], Outcome]:
    """The good profile with a mistake in it."""
    assert old in PROFILE
    return says(PROFILE.replace(old, new))


def gates(text: str) -> Callable[[Place], Outcome]:
    """A profile with these sections after a good one, which begins in line 3."""
    return says(HEAD + "[gate.boot]\n" + text)


def called(name: str) -> Callable[[Place], Outcome]:
    """Another value of ``--iso-distro``."""
    return lambda place: place.run("--iso", "test.iso", "--iso-distro", name)


def instead(make: Callable[[Path], object]) -> Callable[[Place], Outcome]:
    """Something else at the path of the profile."""

    def run_it(place: Place) -> Outcome:
        (place.path / "bench.toml").unlink()
        make(place.path / "bench.toml")
        return place.judge()

    return run_it


def unreadable(place: Place) -> Outcome:
    (place.path / "bench.toml").chmod(0)
    return place.judge(inside=POWERLESS)


def failing(sections: str) -> Callable[[Place], Outcome]:
    """A gate fails, and the profile has something to say about it."""

    def make(place: Place) -> Outcome:
        place.profile(HEAD + sections)
        place.tests(FAILS)
        return place.judge()

    return make


def gate_file(text: str | None, section: str = "[gate.own]\n") -> Callable[[Place], Outcome]:
    """A gate of the distribution's own."""

    def make(place: Place) -> Outcome:
        if text is not None:
            (place.path / "own").mkdir()
            (place.path / "own" / "test_own.py").write_text(text)
        place.profile(f'{HEAD}gates = ["own"]\n[gate.boot]\n{section}')
        return place.judge()

    return make


def while_it_begins(place: Place) -> Outcome:
    """Somebody saves the profile after it was read and before its copy is put into the evidence."""
    hook = """
from pytest_osgates.profiles import loader
load = loader.load
def then_saved(path):
    profile = load(path)
    with open("bench.toml", "a") as file:
        file.write("[gate.kernel-upgrade]\\n")
    return profile
loader.load = then_saved
"""
    return place.judge(inside=hook)


ACCEPTED = '[[gate.boot.accept_units]]\nunit = "a.service"\n'
MAKERS: dict[str, Callable[[Place], Outcome]] = {
    "no such name": called("demmo"),
    "no such profile": called("benhc.toml"),
    "a directory for a profile": called("./"),
    "a pipe for a profile": instead(os.mkfifo),
    "a profile that is a loop": instead(lambda path: path.symlink_to(path.name)),
    "an unreadable profile": unreadable,
    "a huge profile": says(PROFILE + "#" * (1 << 20)),
    "an empty profile": says(""),
    "not a profile": says("<!DOCTYPE html>\n"),
    "unquoted": changed('"uefi"', "uefi"),
    "unclosed": changed('"quiet"]', '"quiet"'),
    "no equals sign": changed("watch_s = 60", "watch_s: 60"),
    "a section twice": says(PROFILE + "[gate.boot]\n"),
    "a key twice": changed("watch_s = 60", "watch_s = 60\nwatch_s = 0"),
    "not UTF-8 inside": says(HEAD.encode() + 'title = "Größe"\n'.encode("latin-1")),
    "UTF-16": says(PROFILE.encode("utf-16")),
    "a byte order mark": says(b"\xef\xbb\xbf" + PROFILE.encode()),
    "a NUL inside": says(PROFILE + "\0"),
    "endless brackets": says("x = " + "[" * 50_000),
    "an endless number": says("schema = " + "9" * 5000),
    "another schema": changed("schema = 1", "schema = 2"),
    "no name inside": changed('name = "bench"', ""),
    "a name that forges": changed('"bench"', '"bench\\nLAUNCH: READY"'),
    "an unknown key": changed("[machine]", "[machine]\nmemory = 4096"),
    "an unknown key of a gate": changed("deadline_s", "deadline"),
    "an unknown section": changed("[machine]", "[machin]"),
    "an unknown gate": gates("[gate.kconfg]\nparameters = []\n"),
    "a key of a gate that is not there": gates("[gate.mesh-offline]\nrequird = false\n"),
    "not a gate's name": gates("[gate.Mesh]\n"),
    "the old syntax": changed("[gate.boot]", "[gates.boot]"),
    "a wrong type": changed("deadline_s = 600", 'deadline_s = "ten minutes"'),
    "an impossible value": changed("deadline_s = 600", "deadline_s = 0"),
    "a deadline without end": changed("deadline_s = 600", "deadline_s = inf"),
    "a wrong word": changed('"uefi"', '"uffi"'),
    "a wrong word for a state": gates('[gate.kconfig]\nstate = "instaled"\n'),
    "a state that the gate does not judge": gates('state = "installed"\n'),
    "a firmware twice": changed('"bios"', '"uefi"'),
    "several mistakes": changed("deadline_s = 600", 'deadline = 600\nstate = "lvie"\nwatch = 0'),
    "a broken pattern": says(HEAD + "[boot]\nready_text = 'login: ('\n[gate.boot]\n"),
    "a pattern without measure": says(HEAD + f"[boot]\nready_text = '{'(' * 4000}'\n[gate.boot]\n"),
    "an acceptance of what ends a boot": gates('[[gate.boot.accept_alarms]]\nalarm = "kernel-panic"\nreason = "r"\n'),
    "no gate is required": says(HEAD + "[gate.boot]\nrequired = false\n"),
    "no gate": says(HEAD),
    "absent and enabled": gates(f"{UNIT}absent = true\n{UNIT}enabled = true\n"),
    "demanded twice": gates(f"{UNIT}active = true\n{UNIT}active = true\n"),
    "a demand of nothing": gates(UNIT),
    "a demand without a reason": gates(UNIT.replace('"r"', '" "') + "active = true\n"),
    "a demand that is a pattern of anything": gates(
        '[[gate.settings.file]]\nstate = "live"\nreason = "r"\npaths = ["/etc/motd"]\ncontains = ["x*"]\n'
    ),
    "an acceptance without a reason": failing(f"[gate.boot]\n{ACCEPTED}"),
    "an acceptance with an empty reason": failing(f'[gate.boot]\n{ACCEPTED}reason = "  "\n'),
    "a gates list that is a word": says(HEAD + 'gates = "own"\n[gate.boot]\n'),
    "a path of gates that is not there": gate_file(None),
    "a gate that breaks": gate_file("import pytest\n1 / 0\n"),
    "a gate that ends the run": gate_file("raise SystemExit(0)\n"),
    "a file without a gate": gate_file("x = 1\n"),
    "a gate that is called like a built-in one": gate_file(
        "from pytest_osgates.checks.boot import GATE\n", "[gate.kconfig]\n"
    ),
    "saved while the run begins": while_it_begins,
}


@proves(*MAKERS)
def test_profile(fault: Fault, place: Place) -> None:
    outcome = MAKERS[fault.name](place)
    check(fault, outcome, gate=None if fault.verdict == REFUSED else "boot")
    if fault.verdict == REFUSED:
        assert "\n  -> " in outcome.output, "it does not say what to do"
        assert not list(place.path.glob("osgates-evidence/*/*/*")), "something was written"
