"""Errors name their remedy, and cross process borders (xdist) as they are."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from pytest_osgates.vm import errors
from pytest_osgates.vm.errors import CommandFailed, GuestError, HostError, MissingTool, OsgatesError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OsgatesError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not CommandFailed])
def test_pickling_keeps_type_message_and_remedy(kind: type[OsgatesError]) -> None:
    for remedy in (None, "do this"):
        error = kind("it broke", remedy=remedy)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
            assert type(again) is kind
            assert str(again) == str(error)
            assert (again.what, again.remedy) == ("it broke", remedy)


def test_pickling_what_has_fields_of_its_own() -> None:
    error = CommandFailed(["/usr/bin/tool", "-x"], -9, "said this", remedy="do this")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is CommandFailed
    assert str(again) == str(error)
    assert (again.command, again.returncode, again.output) == (("/usr/bin/tool", "-x"), -9, "said this")
    assert again.remedy == "do this"


def test_the_remedy_is_part_of_the_message() -> None:
    assert str(MissingTool("no qemu", remedy="apt-get install it")) == "no qemu\n  -> apt-get install it"
    assert str(MissingTool("no qemu")) == "no qemu"


def test_what_a_failed_command_says() -> None:
    output = "".join(f"line {number}\n" for number in range(1, 31))
    text = str(CommandFailed(["/usr/bin/mksquashfs", "a"], 2, output))
    assert text.startswith("mksquashfs ended with status 2:\n")
    assert [line.strip("| ") for line in text.splitlines()[1:]] == [f"line {number}" for number in range(19, 31)]
    assert str(CommandFailed(["tool"], -11, "")) == "tool was killed by signal 11"
    assert str(CommandFailed([], 1, " \n")) == "? ended with status 1"


def test_guest_and_host_are_apart() -> None:
    assert not [kind for kind in KINDS if issubclass(kind, GuestError) and issubclass(kind, HostError)]
    assert all(kind.__doc__ for kind in KINDS)
    listed = errors.__doc__ or ""
    assert not [kind.__name__ for kind in KINDS if kind.__name__ not in listed]
