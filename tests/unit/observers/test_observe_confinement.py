"""The whole of it: a machine that is watched and asked, played by a table; and this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from confined_machine import Machine, entry, scanned
from local_shell import local_shell

from pytest_osgates.checks.apparmor import GATE
from pytest_osgates.checks.apparmor_model import (
    ApparmorObservation,
    ApparmorPolicy,
    Kind,
    StaticScan,
    UnitSeen,
)
from pytest_osgates.evidence import Evidence as Store
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, State, Verdict
from pytest_osgates.observers.confinement.observe import Place, observe, profiles, questions
from pytest_osgates.observers.confinement.parse_probe import Probed
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.errors import GuestTimeout
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult


def seen(machine: Machine, scan: StaticScan, tmp_path: Path, **section: object) -> ApparmorObservation:
    place = Place(cast("GuestShell", machine), State.LIVE, Store(tmp_path), ProgressLog(tmp_path / "progress.jsonl"))
    policy = ApparmorPolicy.model_validate(section)
    return observe(place, scan, policy, lambda path: path)


def decisive(observation: ApparmorObservation, **section: object) -> set[tuple[str, str]]:
    found = judge(GATE, observation, ApparmorPolicy.model_validate(section)).findings
    return {one.key for one in found if one.severity in (Severity.VIOLATION, Severity.UNPROVEN)}


SCAN = scanned(entry("/usr/bin/nc"), entry("/usr/sbin/d", Kind.LISTENING_SERVICE), entry("/bin/ls", Kind.REACHES))
GOOD = {"/usr/bin/nc": "p (enforce)", "/usr/sbin/d": "d (enforce)"}
IDLE = ((1, "/usr/lib/systemd/systemd", "unconfined", 0), (30, "/usr/sbin/d", "d (enforce)", 77))


def test_a_confined_machine_passes(tmp_path: Path) -> None:
    machine = Machine(GOOD, IDLE)
    observation = seen(machine, SCAN, tmp_path)
    result = judge(GATE, observation, ApparmorPolicy())
    assert result.verdict is Verdict.PASS, result
    assert observation.confinement is not None
    assert observation.confinement.watched_s >= 60
    assert observation.confinement.looks >= 2
    assert observation.confinement.method == "ptrace by perl"
    assert [found.path for found in observation.scan.entries if found.tier == "A"] == ["/usr/sbin/d"]
    assert machine.files["/run/nonce/probe.list"] == b"/usr/bin/nc\0\0/usr/sbin/d\0\0"
    kept = json.loads((tmp_path / "confinement/labels.json").read_text())
    assert [row["label"] for row in kept["labels"]] == ["p (enforce)", "d (enforce)"]
    assert (tmp_path / "confinement/looks.json").stat().st_size


@pytest.mark.parametrize(
    ("labels", "running", "options", "wanted"),
    [
        ({"/usr/bin/nc": "unconfined"}, IDLE, {}, {("unconfined", "/usr/bin/nc")}),
        ({"/usr/bin/nc": "p (complain)"}, IDLE, {}, {("complain-mode", "/usr/bin/nc")}),
        ({"/usr/bin/nc": "p (unconfined)"}, IDLE, {}, {("unconfined", "/usr/bin/nc")}),
        ({}, ((30, "/usr/sbin/d", "unconfined", 7),), {}, {("started-before-profile", "/usr/sbin/d")}),
        # A listener that no file gave away.
        ({"/opt/x": "unconfined"}, ((31, "/opt/x", "unconfined", 7),), {}, {("unconfined", "/opt/x")}),
        # One that is gone when somebody looks.
        (
            {"/opt/x": "unconfined"},
            IDLE,
            {"trace": "  sh-9 [000] ..... 1.5: sched_process_exec: filename=/opt/x pid=9 old_pid=9\n"
             "  x-9 [000] ..... 1.6: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=80 dport=0 "
             "saddr=0 daddr=0 oldstate=TCP_CLOSE newstate=TCP_LISTEN\n"},
            {("unconfined", "/opt/x")},
        ),
        ({"/opt/y": "unconfined"}, IDLE, {"scope": 3}, set()),
        ({}, IDLE, {"own": "p (enforce)"}, {("confinement-problem", "kernel")}),
        ({}, IDLE, {"first": "systemd (enforce)"}, {("confinement-problem", "kernel")}),
        ({}, IDLE, {"enabled": "N"}, {("apparmor-disabled", "kernel")}),
        ({}, ((1, "/usr/lib/systemd/systemd", "unconfined", 7),), {}, {("ownerless-socket", "tcp 0.0.0.0:80")}),
    ],
)  # fmt: skip
def test_what_is_found(
    tmp_path: Path,
    labels: dict[str, str],
    running: tuple[tuple[int, str, str, int], ...],
    options: dict[str, str],
    wanted: set[tuple[str, str]],
) -> None:
    machine = Machine({**GOOD, **labels}, running, **options)  # type: ignore[arg-type]
    assert decisive(seen(machine, SCAN, tmp_path)) == wanted
    assert machine.methods == (["ptrace", "exit"] if machine.scope == 3 else ["ptrace"])


def test_a_recorded_process_is_not_excused_by_another_that_holds_a_socket(tmp_path: Path) -> None:
    trace = "  sh-9 [000] ..... 1.5: sched_process_exec: filename=/usr/bin/python3 pid=200 old_pid=200\n"
    trace += (
        "  python3-200 [000] ..... 1.6: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=0 dport=443 "
    )
    trace += "saddr=0 daddr=0 oldstate=TCP_CLOSE newstate=TCP_SYN_SENT\n"
    running = (
        *IDLE,
        (100, "/usr/bin/python3", "daemon (enforce)", 78),
        (200, "/usr/bin/python3", "unconfined", 0),
    )
    document = {"reason": "an interpreter", "reviewer": "A. Person", "date": "2026-01-01"}
    rows = [{"binary": "/usr/bin/python3", **document}]
    for record, wanted in ((trace, {("unconfined", "/usr/bin/python3")}), ("", set())):
        machine = Machine({**GOOD, "/usr/bin/python3": "unconfined"}, running, trace=record)
        assert decisive(seen(machine, SCAN, tmp_path), documented=rows) == wanted


def test_a_program_that_is_gone_proves_nothing(tmp_path: Path) -> None:
    machine = Machine({"/usr/sbin/d": "d (enforce)"}, IDLE)
    assert decisive(seen(machine, SCAN, tmp_path)) == {("no-label", "/usr/bin/nc")}


def test_units_and_flatpaks(tmp_path: Path) -> None:
    unit = UnitSeen(name="d.service", program="/usr/sbin/d", apparmor_profile="-dd", listens=("0.0.0.0:80",))
    application = entry("/var/lib/flatpak/app/x", Kind.FLATPAK, package="flatpak:x")
    scan = scanned(entry("/usr/sbin/d", Kind.SOCKET_UNIT), application, units=(unit,))
    machine = Machine({"/usr/sbin/d": "unconfined"}, ((1, "/usr/lib/systemd/systemd", "unconfined", 7),))
    observation = seen(machine, scan, tmp_path)
    assert machine.files["/run/nonce/probe.list"] == b"/usr/sbin/d\0\0/usr/sbin/d\0-dd\0"
    assert decisive(observation) == {("unconfined", "/usr/sbin/d"), ("no-label", "/var/lib/flatpak/app/x")}
    documents = [
        {"binary": path, "reason": "looked at", "reviewer": "A. Person", "date": "2026-01-01"}
        for path in ("/usr/sbin/d", "/var/lib/flatpak/app/x")
    ]
    assert decisive(observation, documented=documents) == set()
    assert len(questions(scan)) == 2


def test_what_the_first_process_waits_for_cannot_be_left_out(tmp_path: Path) -> None:
    unit = UnitSeen(name="sshd.service", program="/usr/sbin/sshd", listens=("80",))
    scan = scanned(entry("/usr/sbin/sshd", Kind.SOCKET_UNIT), units=(unit,))
    rows = [{"paths": ["/usr/sbin/sshd"], "reason": "it is never started"}]
    for inode, wanted in ((7, {("unconfined", "/usr/sbin/sshd")}), (0, set())):
        machine = Machine({"/usr/sbin/sshd": "unconfined"}, ((1, "/usr/lib/systemd/systemd", "unconfined", inode),))
        assert decisive(seen(machine, scan, tmp_path), left_out=rows) == wanted


READ = UnitSeen(name="r.service", program="/opt/app", executes="/usr/bin/perl")


@pytest.mark.parametrize(
    ("labels", "profile", "refused", "wanted"),
    [
        # Its path has a profile; but who reads it has none.
        ({"/opt/app": "app (enforce)", "/usr/bin/perl": "unconfined"}, "", False, {("unconfined", "/opt/app")}),
        ({"/opt/app": "app (enforce)", "/usr/bin/perl": "unconfined"}, "app", False, set()),
        ({"/usr/bin/perl": "unconfined"}, "app", True, set()),
        ({"/usr/bin/perl": "unconfined"}, "app", False, {("no-label", "/opt/app")}),
        ({"/usr/bin/perl": "perl (enforce)"}, "", True, set()),
        ({"/usr/bin/perl": "unconfined"}, "", True, {("unconfined", "/opt/app")}),
    ],
)
def test_a_script_that_its_unit_has_read(
    tmp_path: Path, labels: dict[str, str], profile: str, refused: bool, wanted: set[tuple[str, str]]
) -> None:
    """The label is that of the interpreter, in the unit's context."""
    unit = READ.model_copy(update={"apparmor_profile": profile})
    machine = Machine(labels, IDLE[:1])
    machine.refused = ("/opt/app",) if refused else ()
    observation = seen(machine, scanned(entry("/opt/app", Kind.LISTENING_SERVICE), units=(unit,)), tmp_path)
    assert decisive(observation) == wanted


def test_a_script_that_nobody_reads_and_the_kernel_refuses_proves_nothing(tmp_path: Path) -> None:
    machine = Machine({}, IDLE[:1])
    machine.refused = ("/opt/app",)
    assert decisive(seen(machine, scanned(entry("/opt/app")), tmp_path)) == {("no-label", "/opt/app")}


def test_without_a_record_nothing_is_proven_unless_the_profile_says_why(tmp_path: Path) -> None:
    observation = seen(Machine(GOOD, IDLE, trace=None), SCAN, tmp_path)
    assert judge(GATE, observation, ApparmorPolicy()).verdict is Verdict.NOT_PROVEN
    assert decisive(observation) == {("sockets-not-recorded", "kernel")}
    assert judge(GATE, observation, ApparmorPolicy(accept_unrecorded="locked down")).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("allowed", "allows"),
    [
        ("00000000", ()),
        ("00000006", ("every-file", "every-network")),
        ("ffffffff", ("every-file", "every-network", "unconfined")),
    ],
)
def test_what_profiles_allow(tmp_path: Path, allowed: str, allows: tuple[str, ...]) -> None:
    observation = seen(Machine(GOOD, IDLE, allowed=allowed), SCAN, tmp_path)
    assert observation.confinement is not None
    (profile,) = observation.confinement.profiles
    assert (profile.name, profile.allows, profile.loose) == ("p", allows, len(allows) > 1)
    told = profiles(Probed(True, 2, None, "perl", allowed={"p": {"net": 1}}))
    assert told[0].unknown


def test_a_guest_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    class Silent(Machine):
        def run(self, command: str, **options: object) -> ShellResult:  # type: ignore[override]
            raise GuestTimeout("silent")

    with pytest.raises(GuestTimeout):
        seen(Silent({}), SCAN, tmp_path)


def test_this_machine(tmp_path: Path) -> None:
    """Really run, by a shell of this host: whatever it is, it is no kernel that was not asked."""
    place = Place(local_shell(tmp_path), State.LIVE, Store(tmp_path), ProgressLog(tmp_path / "progress.jsonl"))
    observation = observe(place, scanned(entry("/bin/sh")), ApparmorPolicy(watch_s=0), lambda path: path)
    assert observation.confinement is not None
    assert observation.confinement.looks >= 2
    asked = [
        label for label in observation.confinement.attachments if label.how == "exec" and label.path == "/bin/sh"
    ]
    assert len(asked) == 1
    if not observation.confinement.enabled:
        assert ("apparmor-disabled", "kernel") in decisive(observation, watch_s=0)
