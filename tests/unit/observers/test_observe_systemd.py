"""What systemd in the guest says, taken with care: a guest that makes no sense is an error, never a clean boot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from fake_shell import Answer, shell
from gate_samples import HOSTILE
from hypothesis import given, settings

from pytest_osgates.checks.boot import UnitFailure
from pytest_osgates.observers import systemd
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.guest.channel import GuestShell


def entry(**changes: Any) -> dict[str, Any]:
    """A record of PID 1 that a unit failed."""
    fields = {
        "_PID": "1",
        "_SYSTEMD_UNIT": "init.scope",
        "UNIT": "a.service",
        "UNIT_RESULT": "exit-code",
        "__MONOTONIC_TIMESTAMP": "3250000",
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def guest(
    *entries: dict[str, Any] | str,
    failed: bytes = b"",
    journal: Answer | None = None,
    probe: bytes | Answer = b'{"MESSAGE": "x"}\n',
) -> GuestShell:
    lines = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in entries)
    return shell(
        {
            "--state=failed": failed,
            "MESSAGE_ID=": journal or (0 if entries else 1, lines.encode(), b""),
            "-n 1": probe,
        }
    )


def test_a_boot_without_failures() -> None:
    assert systemd.failures(guest()) == ()


def test_a_failed_unit_is_told_by_the_journal_with_its_time() -> None:
    found = systemd.failures(guest(entry(), failed=b"a.service loaded failed failed A service\n"))
    assert found == (UnitFailure(unit="a.service", result="exit-code", at=3.25, still_failed=True),)


def test_a_unit_that_was_started_again_is_told_too() -> None:
    assert systemd.failures(guest(entry())) == (UnitFailure(unit="a.service", result="exit-code", at=3.25),)


def test_a_unit_that_the_journal_forgot_is_told_by_the_list() -> None:
    found = systemd.failures(guest(failed=b"b.mount loaded failed failed B\n\na.service loaded failed failed A\n"))
    assert found == tuple(UnitFailure(unit=name, still_failed=True) for name in ("a.service", "b.mount"))


def test_user_units_are_kept_apart() -> None:
    user = entry(_PID="800", _SYSTEMD_UNIT="user@1000.service", UNIT=None, USER_UNIT="a.service")
    found = systemd.failures(guest(entry(), user, failed=b"a.service loaded failed failed A\n"))
    assert [(failure.unit, failure.user, failure.still_failed) for failure in found] == [
        ("a.service", False, True),
        ("a.service", True, False),
    ]


def test_the_first_failure_of_a_unit_counts() -> None:
    found = systemd.failures(guest(entry(), entry(__MONOTONIC_TIMESTAMP="9000000")))
    assert [failure.at for failure in found] == [3.25]


def test_nobody_but_systemd_may_say_that_a_unit_failed() -> None:
    forged = entry(_PID="812", _SYSTEMD_UNIT="evil.service", UNIT="ssh.service")
    anonymous = entry(_PID=None, _SYSTEMD_UNIT=None)
    assert systemd.failures(guest(forged, anonymous, entry(UNIT=["a.service"]))) == ()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "no-suffix",
        "a b.service",
        "$(reboot).service",
        "a;b.service",
        "../a.service",
        "-.SERVICE",
        "x" * 256 + ".service",
        "ä.service",
        HOSTILE,
        "a.service\x00",
    ],
)
def test_a_name_that_is_no_units_name_is_refused(name: str) -> None:
    with pytest.raises(ChannelError, match="no unit") as caught:
        systemd.failures(guest(entry(UNIT=name)))
    assert "\x1b" not in str(caught.value)
    with pytest.raises(ChannelError, match="no unit"):
        systemd.active_states(shell({}), "a.service", name)


@pytest.mark.parametrize(
    "name",
    [
        "a.service",
        "dev-disk-by\\x2dlabel-x.device",
        "user@1000.service",
        "-.mount",
        "sys-a:b.device",
        "multi-user.target",
    ],
)
def test_a_real_units_name_is_taken(name: str) -> None:
    assert systemd.failures(guest(entry(UNIT=name)))[0].unit == name


def test_the_list_of_failed_units_is_not_trusted_either() -> None:
    with pytest.raises(ChannelError, match="no unit"):
        systemd.failures(guest(failed=b"\xe2\x97\x8f a.service loaded failed failed\n"))


def test_more_failures_than_make_sense_are_refused() -> None:
    many = [entry(UNIT=f"u{number}.service") for number in range(systemd.MAX_UNITS + 1)]
    with pytest.raises(ChannelError, match="501 failed units"):
        systemd.failures(guest(*many))
    assert len(systemd.failures(guest(*many[1:]))) == systemd.MAX_UNITS


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "not JSON"), ("-- No entries --", "not JSON"), ("[]", "not a list of objects"), ("null", "not a list")],
)
def test_a_journal_that_is_broken_is_refused(line: str, said: str) -> None:
    with pytest.raises(ChannelError, match=said):
        systemd.failures(guest(entry(), line))


@pytest.mark.parametrize(
    "answers",
    [
        {"probe": b""},
        {"probe": b"\n"},
        {"probe": (1, b"", b"")},
        {"journal": (1, b"", b"No journal files were found.\n")},
        {"journal": (0, b"", b"Journal file corrupted, ignoring\n")},
        {"journal": (2, b"", b"")},
        {"journal": (127, b"", b"journalctl: not found\n")},
    ],
)
def test_a_guest_without_a_journal_is_not_a_guest_without_failures(answers: dict[str, Any]) -> None:
    with pytest.raises(ChannelError, match="journal"):
        systemd.failures(guest(**answers))


def test_a_guest_without_systemctl_is_refused() -> None:
    with pytest.raises(ChannelError, match="ended with 127"):
        systemd.failures(shell({}))


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    unit=st.text(max_size=20),
    result=st.text(max_size=60) | st.integers() | st.none(),
    stamp=st.text(max_size=12) | st.integers(0, 10**15) | st.none(),
    pid=st.sampled_from(["1", "2", 1, None]),
)
def test_any_record_is_taken_or_refused_cleanly(unit: str, result: object, stamp: object, pid: object) -> None:
    try:
        found = systemd.failures(guest(entry(UNIT=unit, UNIT_RESULT=result, __MONOTONIC_TIMESTAMP=stamp, _PID=pid)))
    except ChannelError:
        return
    for failure in found:
        assert failure.unit == unit
        assert len(failure.result) <= 43
        assert failure.result.isprintable()


def test_active_states_belong_to_their_units() -> None:
    table = shell({"is-active -- a.target b.target": (3, b"active\ninactive\n", b"")})
    assert systemd.active_states(table, "a.target", "b.target") == {"a.target": "active", "b.target": "inactive"}


@pytest.mark.parametrize("answer", [b"", b"active\n", b"active\nactive\nactive\n"])
def test_an_answer_of_another_length_says_nothing(answer: bytes) -> None:
    assert systemd.active_states(shell({"is-active": answer}), "a.target", "b.target") == {}


def test_the_default_target_is_a_unit() -> None:
    assert systemd.default_target(shell({"get-default": b"graphical.target\n"})) == "graphical.target"
    for answer in (b"", b"graphical\n", b"a.target; reboot\n", (1, b"a.target", b"failed")):
        with pytest.raises(ChannelError):
            systemd.default_target(shell({"get-default": answer}))


def test_uptime_is_seconds() -> None:
    assert systemd.uptime(shell({"uptime": b"12.34 20.00\n"})) == 12.34
    for answer in (b"", b"long 1\n", b"\xff", HOSTILE.encode()):
        with pytest.raises(ChannelError):
            systemd.uptime(shell({"uptime": answer}))


def test_timestamps_are_seconds_and_absent_ones_are_left_out() -> None:
    table = shell(
        {
            "KernelTimestampMonotonic": b"KernelTimestampMonotonic=0\nInitRDTimestampMonotonic=1500000\n"
            b"UserspaceTimestampMonotonic=" + b"9" * 30 + b"\nNoise\n",
            "ActiveEnter": b"ActiveEnterTimestampMonotonic=20250000\n",
        }
    )
    assert systemd.timestamps(table, "multi-user.target") == {"initrd": 1.5, "multi-user.target": 20.25}


STARTED = {"_PID": "1", "MESSAGE_ID": systemd.STARTED_MESSAGE, "UNIT": "multi-user.target"}


@pytest.mark.parametrize(
    ("record", "target"),
    [
        (STARTED, "multi-user.target"),
        ({**STARTED, "UNIT": "a.service"}, None),
        ({**STARTED, "UNIT": ["a.target"]}, None),
        ({**STARTED, "_PID": "812"}, None),
        ({**STARTED, "MESSAGE_ID": "0" * 32, "MESSAGE": systemd.STARTED_MESSAGE}, None),
        ([systemd.STARTED_MESSAGE, ".target"], None),
        ({}, None),
    ],
)
def test_a_target_is_reached_when_the_manager_says_so(record: object, target: str | None) -> None:
    assert systemd.reached_target(json.dumps(record)) == target


@pytest.mark.parametrize("line", ["", "{", systemd.STARTED_MESSAGE + " a.target", HOSTILE])
def test_a_line_that_is_no_record_reaches_no_target(line: str) -> None:
    assert systemd.reached_target(line) is None


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b"\x06\0\0\0\x01", True),
        (b"\x06\0\0\0\x00", False),
        (b"\x06\0\0\0\x02", False),
        (b"\x01", None),
        (b"", None),
        ((1, b"\x06\0\0\0\x01", b"cat: no such file"), None),
    ],
)
def test_secure_boot_is_what_the_variable_says(answer: bytes | Answer, state: bool | None) -> None:
    assert systemd.secure_boot(shell({"SecureBoot-": answer})) is state


@pytest.mark.parametrize("ask", [systemd.system_state, systemd.jobs])
def test_what_is_shown_is_one_harmless_line(ask: Callable[[GuestShell], str]) -> None:
    said = ask(shell({"systemctl": HOSTILE.encode()}))
    assert said.isprintable()
    assert "\x1b" not in said
