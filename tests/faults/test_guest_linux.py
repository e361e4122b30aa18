"""What a guest does wrong once there is a Linux: the quick guest with some more commands; where only a whole system
will do, the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_osgates.demo import load_fault
from tests.e2e.conftest import Gates, Outcome
from tests.e2e.quick import quick_profile
from tests.faults import table
from tests.faults.quick_guest import make_quick_iso, write_profile
from tests.faults.table import Fault, check, proves

pytestmark = pytest.mark.boots

HERE = Path(__file__).parent
# Arguments of make_quick_iso, and the rule and subject of the finding.
GUESTS: dict[str, tuple[dict[str, str], set[tuple[str, str]]]] = {
    "panic-early": ({"early": "echo c >/proc/sysrq-trigger"}, {("kernel-panic", "kernel")}),
    "panic-late": ({"late": "(sleep 2; echo c >/proc/sysrq-trigger) &"}, {("kernel-panic", "kernel")}),
    "hangs-before-init": ({"early": "while :; do sleep 1000; done"}, {("not-ready", "multi-user.target")}),
    "powers-off-late": ({"late": "(sleep 2; poweroff -f) &"}, {("powered-off", "multi-user.target")}),
    "out-of-memory": (
        {"late": "for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=250M & done"},
        {("out-of-memory", "kernel")},
    ),
    "run-full": (
        {"late": "(for size in 64k 1k 1; do dd if=/dev/zero of=/run/fill.$size bs=$size; done) 2>/dev/null"},
        {("units-unknown", "systemd"), ("watch-cut-short", "systemd")},
    ),
    "clock-jump": ({"late": 'date -s "@$(($(date +%s) + 31536000))"'}, set()),
    "journal-flood": ({"late": '(yes \'{"MESSAGE": "noise"}\' >$(echo /dev/virtio-ports/*.journal)) &'}, set()),
}
QUICK = ("panic-late", "powers-off-late", "run-full")
# How each row of the table is made by the shell below.
WAYS = {
    "shell-hangs": "hangs",
    "shell-answers-half": "half",
    "shell-answers-another": "other",
    "shell-dies": "dies",
    "shell-answers-10-GB": "huge",
    "shell-floods": "floods",
    "shell-sends-more": "too-much",
    "shell-malformed": "malformed",
}
# Each request is one line. After having answered wrongly the shell is silent for a while, and then another one comes.
LIAR = """
lost=OSG-ffffffffffffffffffffffffffffffff
while IFS= read -r line; do
    case $line in
        *fault:*) ;;
        *) eval "$line"; continue ;;
    esac
    ident=OSG-${line##*OSG-}
    ident=${ident%-END*}
    case $line in
        *fault:half*) printf '%s 0 1000 0\\nonly this' "$ident" ;;
        *fault:other*) printf '%s 0 2 0\\nok%s-END\\n' $lost $lost ;;
        *fault:dies*) printf '%s 0 10' "$ident"; exit 1 ;;
        *fault:huge*) printf '%s 0 10737418240 0\\n' "$ident"; timeout 20 yes; exit 1 ;;
        *fault:floods*) timeout 20 yes; exit 1 ;;
        *fault:too-much*) printf '%s 0 2 0\\nmuch more than two%s-END\\n' "$ident" "$ident" ;;
        *fault:malformed*) printf '%s 0 -1 many\\n' "$ident" ;;
    esac
    sleep 40
    exit 1
done
"""


@proves(*QUICK)
def test_a_guest_goes_wrong(fault: Fault, gates: Gates, demo_iso: Path) -> None:
    go_wrong(fault, gates, demo_iso)


@pytest.mark.slow
@proves(*(name for name in GUESTS if name not in QUICK))
def test_a_guest_goes_wrong_in_other_ways(fault: Fault, gates: Gates, demo_iso: Path) -> None:
    go_wrong(fault, gates, demo_iso)


def go_wrong(fault: Fault, gates: Gates, demo_iso: Path) -> None:
    """Judge the quick guest with this fault."""
    arguments, findings = GUESTS[fault.name]
    profile = write_profile(
        gates.directory, watch_s="10", deadline_s="20" if fault.name == "hangs-before-init" else "400"
    )
    iso = make_quick_iso(demo_iso, gates.directory, **arguments)
    outcome = gates.run("--iso", iso, "--iso-distro", profile, "-m", "boot", "-k", "channel")
    if not findings:
        # One row of two was run, so the gate is not proven; the row is what this is about.
        assert outcome.verdicts["gates"]["boot"]["rows"]["bios-channel"]["verdict"] == "PASS"
    check(fault, outcome)
    assert outcome.findings("boot") == findings


@pytest.mark.slow
@proves(*WAYS)
def test_a_shell_that_answers_wrongly(gates: Gates, demo_iso: Path) -> None:
    """One boot, one row a way; afterwards the shell that came back is asked honestly."""
    profile = write_profile(gates.directory)
    head, _, _ = profile.read_text().partition("[gate.")
    profile.write_text(head.replace('gates = ["gates"]', f'gates = ["{HERE / "liar" / "gates"}"]') + "[gate.liar]\n")
    iso = make_quick_iso(demo_iso, gates.directory, shell=LIAR)
    outcome = gates.run("--iso", iso, "--iso-distro", profile)
    rows = outcome.verdicts["gates"]["liar"]["rows"]
    assert rows["honest"]["verdict"] == "PASS"
    reasons = dict(reason.split(": ", 1) for reason in outcome.verdicts["gates"]["liar"]["reasons"])
    for name, way in WAYS.items():
        check(table.rows()[name], outcome)
        assert rows[way]["verdict"] == "NOT PROVEN"
        assert table.rows()[name].said_in(reasons[way]), (way, reasons)


@pytest.mark.slow
@proves("no-live-system")
def test_a_whole_system_goes_wrong(fault: Fault, gates: Gates, fault_iso: Callable[[str | Path], Path]) -> None:
    planted = HERE / "images" / fault.name
    profile = quick_profile(gates.directory)
    outcome: Outcome = gates.run("--iso", fault_iso(planted), "--iso-distro", profile, "-m", "boot", "-k", "channel")
    check(fault, outcome)
    expects = load_fault(planted).file.expects
    assert outcome.findings("boot") == {(expects.rule, expects.subject)}
