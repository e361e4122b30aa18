"""Runs of which the user chose a part, or which end early: what was not run is not proven. Nothing is booted."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.conftest import Outcome

from .table import Fault, check, proves
from .warm import Place

# What becomes of the first row, until the file `mended` is there; every row after it is clean.
FIRST = """
from pathlib import Path

def change(case, seen):
    if case == "uefi-channel" and not Path("mended").exists():
        {what}
    return seen
"""
FAILS = 'return seen.model_copy(update={"resets": 1})'
UNPROVEN = 'pytest.skip("not now")'
MENDS = 'Path("mended").touch(); '
# With a marker for the tests of the gate `kconfig`, or a body instead of what they do.
KERNEL = """
import pytest
from gate_samples import *

@pytest.mark.boot
def test_boot(os_case, os_judge):
    firmware, _, way = os_case.rpartition("-")
    os_judge((booted if way == "channel" else bare)(case=os_case, firmware=firmware))

@pytest.mark.kconfig
{mark}
def test_kernel(os_judge):
    {body}
"""


def chosen(*arguments: str, first: str = "return seen") -> Callable[[Place], Outcome]:
    """The tests with these options; `first`: what becomes of the first row."""

    def make(place: Place) -> Outcome:
        place.tests(FIRST.format(what=first))
        return place.judge(*arguments)

    return make


def then(*arguments: str, first: str) -> Callable[[Place], Outcome]:
    """A run that fails, and another one with these options after the fault is mended."""

    def make(place: Place) -> Outcome:
        place.tests(FIRST.format(what=first))
        before = place.judge()
        assert before.status == 1
        (place.path / "mended").touch()
        outcome = place.judge(*arguments)
        assert outcome.root != before.root
        return outcome

    return make


def kernel(*arguments: str, mark: str = "", body: str = "os_judge(kernel())") -> Callable[[Place], Outcome]:
    """The test of the gate `kconfig` is marked, or does something else."""

    def make(place: Place) -> Outcome:
        (place.path / "test_rows.py").write_text(KERNEL.format(mark=mark, body=body))
        return place.judge(*arguments)

    return make


# The gate that met it, and how it is made.
MAKERS: dict[str, tuple[str, Callable[[Place], Outcome]]] = {
    "-x": ("kconfig", chosen("-x", first=FAILS)),
    "-x and nothing known": ("kconfig", chosen("-x", first=UNPROVEN)),
    "--maxfail": ("kconfig", chosen("--maxfail=1", first=UNPROVEN)),
    "--stepwise": ("kconfig", chosen("--stepwise", first=FAILS)),
    "-k": ("boot", chosen("-k", "not bios-bare")),
    "-k a gate": ("kconfig", chosen("-k", "test_kernel")),
    "-k nothing": ("boot", chosen("-k", "no_such_test")),
    "-m": ("kconfig", chosen("-m", "kconfig")),
    "--deselect": ("boot", chosen("--deselect", "test_rows.py::test_boot[bios-bare]")),
    "--lf": ("boot", then("--lf", first=FAILS)),
    "--ff": ("boot", then("--ff", first=FAILS)),
    "a rerun that passes after nothing was known": ("boot", chosen("--reruns", "1", first=MENDS + UNPROVEN)),
    "a rerun that passes after a FAIL": ("boot", chosen("--reruns", "1", first=MENDS + FAILS)),
    "a rerun that finds nothing out again": ("boot", chosen("--reruns", "2", first=UNPROVEN)),
    "--collect-only": ("boot", chosen("--collect-only")),
    "--setup-only": ("boot", chosen("--setup-only")),
    "--setup-plan": ("boot", chosen("--setup-plan")),
    "-n 2 and -x": ("boot", chosen("-n", "2", "-x", first=FAILS)),
    "a skipped gate": ("kconfig", kernel(mark='@pytest.mark.skip(reason="later")')),
    "an expected failure": ("kconfig", kernel(mark='@pytest.mark.xfail(reason="known")')),
    "an expected failure with --runxfail": (
        "kconfig",
        kernel("--runxfail", mark='@pytest.mark.xfail(reason="known")', body="assert 0"),
    ),
    "pytest.exit": ("kconfig", kernel(body='pytest.exit("enough")')),
    "pytest.exit with 0": ("kconfig", kernel(body='pytest.exit("enough", returncode=0)')),
    "sys.exit with 0": ("kconfig", kernel(body="raise SystemExit(0)")),
    "a test that judges nothing": ("kconfig", kernel(body="pass")),
    "a test that judges twice": ("kconfig", kernel(body="os_judge(kernel()), os_judge(kernel())")),
}


@proves(*MAKERS)
def test_user_chooses(fault: Fault, place: Place) -> None:
    gate, make = MAKERS[fault.name]
    check(fault, make(place), gate)
