"""Asks a shell that answers wrongly, once for each way to do so."""

import time

import pytest

from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.model import Control, Finding, Gate, Observation, Policy, State
from pytest_osgates.vm.errors import GuestError
from pytest_osgates.vm.guest.channel import GuestShell

WAYS = ("hangs", "half", "other", "dies", "huge", "floods", "too-much", "malformed")


class Said(Observation):
    """What the command printed."""

    text: str


def judge(seen: Said, policy: Policy) -> list[Finding]:
    """Anything but the right answer is a violation."""
    if seen.text == "right\n":
        return []
    return [Finding(rule="wrong", subject="answer", seen=seen.text, wanted="right")]


GATE = Gate(
    name="liar",
    title="the shell answers",
    states=(State.LIVE,),
    observation=Said,
    policy=Policy,
    judge=judge,
    controls=(Control("a wrong answer", lambda seen: seen.model_copy(update={"text": ""}), "wrong", "answer"),),
    cases=lambda policy, firmwares: (*WAYS, "honest"),
)


@pytest.fixture
def sane_shell(os_shell: GuestShell) -> GuestShell:
    """The shell that comes back after one that answered wrongly."""
    deadline = time.monotonic() + 200
    while True:
        try:
            os_shell.run("true", timeout=5)
        except GuestError:
            if time.monotonic() > deadline:
                raise
        else:
            return os_shell


@pytest.mark.liar
def test_liar(os_judge: Judge, os_case: str, sane_shell: GuestShell) -> None:
    """Nothing but the right answer is one."""
    command = "echo right" + ("" if os_case == "honest" else f" # fault:{os_case}")
    os_judge(Said(text=sane_shell.run(command, timeout=5, max_output=1 << 20).check().text))
