"""Random tests with random outcomes, run as a user runs them, and a small model of what must come of it.

The model knows of each test only what it says of its row and how often it fails; from that it tells the last line,
the exit status and ``verdicts.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plugin.conftest import BOOT_ROWS, PROFILE

from .table import check_manifest
from .warm import Place, Warm

P, F, N = "PASS", "FAIL", "NOT PROVEN"
ORDER = (P, N, F)
# What a test of a gate does -> what it says of its row (None: nothing was reported), and how many reports fail.
KINDS: dict[str, tuple[str | None, int]] = {
    "pass": (P, 0),
    "fail": (F, 1),
    "unproven": (N, 1),
    "nothing": (N, 1),
    "skip": (N, 1),
    "skip after a pass": (N, 1),
    "skip after a fail": (F, 1),
    "xfail": (N, 1),
    "xfail after a pass": (N, 1),
    "marked xfail, passes": (N, 1),
    "marked xfail, fails": (F, 1),
    "marked strict xfail, passes": (N, 1),
    "breaks": (N, 1),
    "breaks after a pass": (N, 1),
    "breaks after a fail": (F, 1),
    "a fail that is caught": (F, 1),
    "a fail, then a pass": (F, 1),
    "twice": (N, 1),
    "error in setup": (N, 1),
    "error in teardown": (N, 1),
    "fail and error in teardown": (F, 2),
    "another gate's observation": (N, 1),
    "exit": (None, 0),
    "exit after a pass": (None, 0),
    "Ctrl-C": (None, 0),
}
ENDING = ("exit", "exit after a pass", "Ctrl-C")
# A test beside the gates: whether it fails.
BESIDE = {"pass": 0, "breaks": 1, "skip": 0}

TESTS = """
import json
from pathlib import Path
import pytest
from gate_samples import *
from pytest_osgates.checks.boot import Outcome

PLAN = json.loads(Path("plan.json").read_text())

def clean(gate, case):
    if gate == "kconfig":
        return kernel()
    firmware, _, way = (case or "uefi-channel").rpartition("-")
    return (booted if way == "channel" else bare)(case=case or "uefi-channel", firmware=firmware)

def spoiled(gate, case):
    if gate == "kconfig":
        return kernel(check("CONFIG_X", "FAIL: y"))
    return clean(gate, case).model_copy(update={"resets": 1})

def blank(gate, case):
    if gate == "kconfig":
        return kernel().model_copy(update={"checks": ()})
    gone = {"outcome": Outcome.TIMEOUT, "legible": False, "ready_s": None, "console": {}, "channel": False}
    return clean(gate, case).model_copy(update=gone)

def now(request):
    attempts = PLAN[request.node.name]
    done = request.node.__dict__.setdefault("_attempts", [0])
    return attempts[min(done[0], len(attempts) - 1)]

@pytest.fixture(autouse=True)
def around(request):
    kind = now(request)
    if kind == "error in setup":
        request.node._attempts[0] += 1
        raise RuntimeError("set-up")
    yield
    request.node._attempts[0] += 1
    if kind.endswith("error in teardown"):
        raise RuntimeError("end")

def act(request, judge, gate, case=""):
    kind = now(request)
    if kind.startswith("marked strict"):
        request.applymarker(pytest.mark.xfail(strict=True))
    elif kind.startswith("marked"):
        request.applymarker(pytest.mark.xfail)
    if kind in {"a fail that is caught", "a fail, then a pass", "skip after a fail", "breaks after a fail"}:
        with pytest.raises(AssertionError):
            judge(spoiled(gate, case))
    elif kind.startswith("fail") or kind == "marked xfail, fails":
        judge(spoiled(gate, case))
    elif kind == "unproven":
        judge(blank(gate, case))
    elif kind == "another gate's observation":
        judge(clean("boot" if gate == "kconfig" else "kconfig", ""))
    elif kind not in {"nothing", "skip", "xfail", "breaks", "exit", "Ctrl-C"}:
        judge(clean(gate, case))
    if kind in {"twice", "a fail, then a pass"}:
        judge(clean(gate, case))
    if kind.startswith("skip"):
        pytest.skip("x")
    if kind.startswith("xfail"):
        pytest.xfail("x")
    if kind.startswith("breaks"):
        {}["key"]
    if kind.startswith("exit"):
        pytest.exit("enough")
    if kind == "Ctrl-C":
        raise KeyboardInterrupt

"""
ROWS = """
@pytest.mark.boot
def test_boot(request, os_case, os_judge):
    act(request, os_judge, "boot", os_case)

@pytest.mark.kconfig
def test_kernel(request, os_judge):
    act(request, os_judge, "kconfig")
"""
EXTRA = """
@pytest.mark.{gate}
def test_extra_{gate}(request, os_judge):
    act(request, os_judge, "{gate}")
"""
OTHER = """
def test_beside(request):
    kind = now(request)
    if kind == "skip":
        pytest.skip("x")
    assert kind == "pass"
"""


@dataclass
class Plan:
    """A run: its tests in order, with what each does the first and the second time, and the options."""

    tests: dict[str, tuple[str, ...]]
    deselected: frozenset[str]
    most_failures: int
    reruns: int
    required: dict[str, bool]

    @property
    def options(self) -> list[str]:
        options = [f"--maxfail={self.most_failures}"] if self.most_failures else []
        options += ["--reruns", str(self.reruns)] if self.reruns else []
        return options + [
            word for name in sorted(self.deselected) for word in ("--deselect", f"test_rows.py::{name}")
        ]


def gate_and_row(test: str) -> tuple[str, str] | None:
    """What a test is about; None: it is beside the gates."""
    name, _, case = test.rstrip("]").partition("[")
    gate = {"test_boot": "boot", "test_extra_boot": "boot", "test_kernel": "kconfig", "test_extra_kconfig": "kconfig"}
    return (gate[name], case) if name in gate else None


@dataclass
class Model:
    """What must come of a plan."""

    plan: Plan
    rows: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.chosen = [test for test in self.plan.tests if test not in self.plan.deselected]
        for test in self.chosen:
            self._run(test, gate_and_row(test))
            if self.ended or (self.plan.most_failures and self.failures >= self.plan.most_failures):
                break

    def _run(self, test: str, about: tuple[str, str] | None) -> None:
        kinds = self.plan.tests[test]
        for attempt in range(self.plan.reruns + 1):
            kind = kinds[min(attempt, len(kinds) - 1)]
            said, failures = KINDS[kind] if about else (None, BESIDE[kind])
            self.ended = kind in ENDING
            if said is not None and about is not None:
                self.rows[about] = max(said, self.rows.get(about, P), key=ORDER.index)
            if not failures or self.ended:
                return
            if attempt == self.plan.reruns:
                self.failures += failures

    @property
    def selected(self) -> set[str]:
        return {about[0] for test in self.chosen if (about := gate_and_row(test))}

    @property
    def verdicts(self) -> dict[str, str]:
        found = {}
        for gate, wanted in (("boot", BOOT_ROWS), ("kconfig", ("",))):
            said = {row: verdict for (name, row), verdict in self.rows.items() if name == gate}
            missing = any(row not in said for row in wanted)
            found[gate] = F if F in said.values() else N if missing or N in said.values() else P
        return found

    @property
    def status(self) -> int:
        if self.ended:
            return 2
        if not self.chosen:
            return 5
        verdicts = {self.verdicts[gate] for gate in self.selected}
        return 1 if F in verdicts else 10 if N in verdicts else int(self.failures > 0)

    @property
    def launch(self) -> str:
        required = [gate for gate, needed in self.plan.required.items() if needed]
        if self.ended or any(self.verdicts[gate] != P for gate in self.selected):
            return "NOT READY"
        if set(required) <= self.selected:
            return "ALL REQUIRED PASS" if self.status == 0 else "NOT READY"
        return "PARTIAL"


gate_kinds = st.lists(st.one_of(st.just("pass"), st.sampled_from(sorted(KINDS))), min_size=1, max_size=2).map(tuple)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Mostly tests that pass, so that one fault alone decides often enough."""
    quiet = st.just(("pass",))
    tests = {f"test_boot[{row}]": draw(st.one_of(quiet, gate_kinds)) for row in BOOT_ROWS}
    tests["test_kernel"] = draw(st.one_of(quiet, gate_kinds))
    # In the order in which the file has them.
    for name in sorted(draw(st.lists(st.sampled_from(["test_extra_boot", "test_extra_kconfig"]), unique=True))):
        tests[name] = draw(st.one_of(quiet, gate_kinds))
    if draw(st.booleans()):
        tests["test_beside"] = (draw(st.sampled_from(sorted(BESIDE))),)
    return Plan(
        tests=tests,
        deselected=frozenset(draw(st.one_of(st.just([]), st.lists(st.sampled_from(sorted(tests)))))),
        most_failures=draw(st.sampled_from([0, 0, 1, 2])),
        reruns=draw(st.sampled_from([0, 0, 1])),
        required=draw(st.sampled_from([{"boot": True, "kconfig": True}, {"boot": True, "kconfig": False}])),
    )


# What a test does, and what it does when it is run again: one word does not undo the other.
AGAIN = (
    *(("fail", "pass"), ("unproven", "pass"), ("skip", "pass"), ("unproven", "fail"), ("fail", "unproven")),
    *(("error in teardown", "pass"), ("error in setup", "pass"), ("a fail that is caught", "pass")),
)


def every_kind() -> Iterator[Plan]:
    """Each kind alone, on the gate with one row; then those that are run again."""
    rest = {f"test_boot[{row}]": ("pass",) for row in BOOT_ROWS}
    both = {"boot": True, "kconfig": True}
    for kind in KINDS:
        yield Plan({**rest, "test_kernel": (kind,)}, frozenset(), 0, 0, both)
    yield Plan({**rest, "test_kernel": ("unproven", "pass")}, frozenset(), 0, 1, both)
    for kinds in (AGAIN[:4], AGAIN[4:]):
        rows = {f"test_boot[{row}]": each for row, each in zip(BOOT_ROWS, kinds, strict=True)}
        yield Plan({**rows, "test_kernel": ("fail", "pass")}, frozenset(), 0, 1, both)


def compare(plan: Plan, path: Path, iso: Path, warm: Warm) -> None:
    """Run `plan` and hold what comes of it against the model."""
    place = Place(path, iso, warm)
    place.profile(PROFILE if plan.required["kconfig"] else PROFILE + "required = false\n")
    text = (
        TESTS
        + ROWS
        + "".join(EXTRA.format(gate=gate) for gate in ("boot", "kconfig") if f"test_extra_{gate}" in plan.tests)
    )
    (path / "test_rows.py").write_text(text + OTHER * ("test_beside" in plan.tests))
    (path / "plan.json").write_text(json.dumps(plan.tests))
    outcome = place.judge(*plan.options)
    model = Model(plan)
    found = outcome.verdicts["gates"]
    context = f"{plan}\n{outcome.output}"
    assert {gate: found[gate]["verdict"] for gate in found} == model.verdicts, context
    rows = {(gate, row): said["verdict"] for gate in found for row, said in found[gate]["rows"].items()}
    assert rows == model.rows, context
    assert set(outcome.verdicts["selected"]) == model.selected, context
    assert outcome.verdicts["launch"] == model.launch, context
    assert outcome.last_line.removeprefix("LAUNCH: ").partition(" (")[0] == model.launch, context
    assert outcome.status == model.status, context
    assert outcome.root is not None
    check_manifest(outcome.root)


QUIET = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(QUIET, max_examples=12, derandomize=True)
@given(plan=plans())
def test_what_comes_of_random_outcomes(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, iso: Path, warm: Warm
) -> None:
    compare(plan, tmp_path_factory.mktemp("model"), iso, warm)


@pytest.mark.slow
@settings(QUIET, max_examples=150)
@given(plan=plans())
def test_what_comes_of_more_random_outcomes(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, iso: Path, warm: Warm
) -> None:
    compare(plan, tmp_path_factory.mktemp("model"), iso, warm)


def test_what_comes_of_each_outcome_alone(tmp_path: Path, iso: Path, warm: Warm) -> None:
    for number, plan in enumerate(every_kind()):
        (tmp_path / str(number)).mkdir()
        compare(plan, tmp_path / str(number), iso, warm)
