"""A distribution's own gates in a run: exactly as a built-in gate, and never in the place of one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from .conftest import PROFILE, Bench, Done

HEAD = 'schema = 1\nname = "bench"\ngates = ["gates"]\n'
GATE = """
import pytest
from pytest_osgates.model import Control, Finding, Gate, Observation, Policy, Severity, State

class Seen(Observation):
    state: State = State.IMAGE
    words: tuple[str, ...] = ()

class Wanted(Policy):
    rows: tuple[str, ...] = ("",)

def judge(seen, policy):
    return [Finding(rule="word", subject=word, seen=word, wanted="none") for word in seen.words]

def sabotage(seen):
    return seen.model_copy(update={"words": (*seen.words, "control")})

def make(name, **changes):
    fields = dict(title=f"gate {name}", states=(State.IMAGE, State.LIVE), observation=Seen, policy=Wanted,
                  judge=judge, controls=(Control("a word", sabotage, "word", "control"),))
    return Gate(name=name, **{**fields, **changes})
"""
ONE = GATE + "GATE = make('motd')\n"
TEST = """
@pytest.mark.motd
def test_motd(os_judge):
    os_judge(Seen())
"""


@pytest.fixture
def own(bench: Bench) -> Bench:
    """A bench whose profile has gates of its own, and the built-in gate `boot` that is not to be booted here."""
    (bench.path / "gates").mkdir()
    bench.profile(HEAD + "[gate.motd]\n")
    return bench


def gate(bench: Bench, text: str, path: str = "gates/test_motd.py") -> Path:
    file = bench.path / path
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(text)
    return file


def judged(bench: Bench, *arguments: str, tests: tuple[str, ...] = ()) -> Done:
    """A run, of no path unless one is named."""
    return bench.run(*arguments, tests=tests).check_manifest()


MANY = (
    GATE
    + """
from .helper import WORDS
GATE = make("house-rule", cases=lambda policy, firmwares: policy.rows)
pytestmark = getattr(pytest.mark, "house-rule")

@pytest.fixture
def observation(os_gate_state, os_image, os_case, greeting):
    assert greeting == "from conftest"
    assert os_image.read("/etc/os-release", 100) == b"ID=osgates-test\\n"
    return Seen(state=os_gate_state, words=WORDS.get(os_case, ()))

class TestRows:
    def test_row(self, os_judge, observation):
        os_judge(observation)
"""
)


@pytest.mark.parametrize("arguments", [(), ("-n", "2", "--dist", "loadgroup")])
def test_rows_of_an_own_gate_are_rows_like_any_other(own: Bench, arguments: tuple[str, ...]) -> None:
    own.profile(HEAD + '[gate.house-rule]\nrows = ["one", "two", "three"]\n[gate.lurking]\n')
    gate(own, MANY, "gates/test_rows.py")
    gate(own, "WORDS = {'two': ('bad',)}\n", "gates/helper.py")
    gate(own, "import pytest\n\n@pytest.fixture\ndef greeting():\n    return 'from conftest'\n", "gates/conftest.py")
    done = judged(own, "--strict-markers", "-m", "house-rule", *arguments)
    assert done.status == 1
    assert done.row_verdicts("house-rule") == {"one": "PASS", "two": "FAIL", "three": "PASS"}
    assert done.verdicts == {"house-rule": "FAIL", "lurking": "NOT PROVEN"}
    assert done.record["selected"] == ["house-rule"]
    (finding,) = done.record["gates"]["house-rule"]["findings"]
    assert (finding["rule"], finding["subject"], finding["rows"]) == ("word", "bad", "two")
    assert (done.root / "observations" / "house-rule" / "three.json").is_file()
    assert set(done.record["gates"]["house-rule"]["from"]["beside"]) == {"conftest.py", "helper.py"}
    assert "from" not in done.record["gates"]["lurking"]
    # Older versions of xdist write the group behind the name.
    assert [found for name, (found, _) in done.junit.items() if name.startswith("test_row[two]")] == [{"failure"}]
    assert not list((done.root / "machines").iterdir())

    (own.path / "gates" / "helper.py").write_text("WORDS = {}\n")
    partial = judged(own, "-k", "one or three", *arguments)
    assert partial.verdicts["house-rule"] == "NOT PROVEN"
    assert partial.reasons("house-rule") == "not run: two"
    assert partial.status == 10


NO_TEST = {
    "no-test": ("", "has no test with the marker 'no-test'"),
    "no-marker": ("def test_it(os_image):\n    pass\n", "has no test with the marker 'no-marker'"),
    "not-found": ("{mark}\ndef check_it(os_judge):\n    os_judge(Seen())\n", "has no test with"),
    "foreign": ("@pytest.mark.boot\ndef test_it(os_judge):\n    os_judge(Seen())\n", "is marked boot"),
    "neighbour": ("@pytest.mark.motd\ndef test_it(os_judge):\n    os_judge(Seen())\n", "is marked motd"),
    "two-markers": ("{mark}\n@pytest.mark.kconfig\ndef test_it(os_judge):\n    os_judge(Seen())\n", "marked kconfig"),
    "good-and-bad": (
        "{mark}\ndef test_it(os_judge):\n    os_judge(Seen())\n\n@pytest.mark.boot\ndef test_boot():\n    pass\n",
        "test_boot is marked boot",
    ),
}


@pytest.mark.parametrize("arguments", [(), ("-m", " or ".join(NO_TEST)), ("-n", "1")])
def test_a_gate_that_no_test_can_prove_is_not_proven(own: Bench, arguments: tuple[str, ...]) -> None:
    gate(own, ONE + TEST)
    for name, (text, _) in NO_TEST.items():
        mark = f"@getattr(pytest.mark, {name!r})"
        text = f"{GATE}GATE = make({name!r})\n{text.format(mark=mark)}"
        gate(own, text, f"gates/test_{name}.py")
    own.profile(HEAD + "[gate.motd]\n" + "".join(f"[gate.{name}]\n" for name in NO_TEST))
    done = judged(own, *arguments)
    assert done.status == 10, done.output
    chosen = set(NO_TEST) if "-m" in arguments else {*NO_TEST, "motd"}
    assert set(done.record["selected"]) == chosen
    assert done.verdicts == {
        **dict.fromkeys(NO_TEST, "NOT PROVEN"),
        "motd": "PASS" if "motd" in chosen else "NOT PROVEN",
    }
    assert done.lines[-1] == "LAUNCH: NOT READY"
    for name, (_, said) in NO_TEST.items():
        assert said in done.reasons(name)
        assert f"gates/test_{name}.py" in done.reasons(name)
        assert done.junit[name][0] == {"error"}


FOREIGN = """
from gate_samples import booted
{imports}
@pytest.mark.boot
def test_boot(os_case, os_judge):
    os_judge(booted(case=os_case))
"""


def test_no_gate_from_outside_speaks_for_a_built_in_one(own: Bench) -> None:
    """Its forged rows are not run, where those of the built-in gate are, too, and where only they are chosen."""
    own.profile(PROFILE.replace("[machine]", 'gates = ["gates"]\n[machine]') + "[gate.motd]\n")
    gate(own, ONE + TEST + FOREIGN.format(imports=""))
    own.rows(
        "def change(case, seen):\n    return seen.model_copy(update={'resets': 1}) if case == 'bios-bare' else seen\n"
    )
    done = judged(own, tests=("test_rows.py", "gates"))
    assert done.verdicts == {"boot": "FAIL", "kconfig": "PASS", "motd": "NOT PROVEN"}
    assert done.row_verdicts("boot")["bios-bare"] == "FAIL"
    alone = judged(own, "-m", "boot", tests=("gates",))
    assert alone.verdicts["boot"] == "NOT PROVEN"
    assert alone.record["selected"] == []
    assert alone.lines[-1] == "LAUNCH: PARTIAL (0 of 3 required gates)"


def test_a_directory_that_several_ways_lead_to_is_collected_once(own: Bench) -> None:
    gate(own, ONE + TEST + "    open('runs', 'a').write('x')\n")
    (own.path / "link").symlink_to("gates")
    own.profile(HEAD.replace('["gates"]', '["gates", "link", "gates/test_motd.py"]') + "[gate.motd]\n")
    for tests in ((), ("gates/test_motd.py", "link", "gates"), (str(own.path), "link/test_motd.py")):
        (own.path / "runs").write_text("")
        own.rows()
        done = judged(own, "-m", "motd", tests=tests)
        assert (done.status, done.verdicts) == (0, {"motd": "PASS"})
        assert (own.path / "runs").read_text() == "x"


def test_it_boots_nothing_for_the_image_and_refuses_another_state_than_the_profiles(own: Bench) -> None:
    gate(own, ONE + TEST)
    own.profile(HEAD + "[gate.motd]\nstate = 'live'\n")
    done = judged(own)
    assert "observed on the state image, the profile wants live" in done.reasons("motd")
    gate(own, ONE + "@pytest.mark.motd\ndef test_motd(os_judge, os_shell):\n    os_judge(Seen())\n")
    own.profile(HEAD + "[gate.motd]\n")
    done = judged(own)
    assert "asks for a machine, but the profile wants its gate judged on the state image" in done.reasons("motd")
    assert not list((done.root / "machines").iterdir())


def test_what_its_judge_and_its_controls_break_is_not_proven(own: Bench) -> None:
    sections = ""
    for name, changes, _ in BREAKS:
        gate(own, GATE + f"GATE = make({name!r}, {changes})\n" + TEST.replace("motd", name), f"gates/test_{name}.py")
        sections += f"[gate.{name}]\n"
    own.profile(HEAD + sections)
    done = judged(own)
    assert done.status == 10, done.output
    for name, _, said in BREAKS:
        assert done.verdicts[name] == "NOT PROVEN"
        assert said in done.reasons(name)


BREAKS = [
    ("raises", "judge=lambda seen, policy: {}['x']", "broke before it judged: KeyError"),
    ("nothing", "judge=lambda seen, policy: None", "broke before it judged: TypeError"),
    ("strings", "judge=lambda seen, policy: ['bad']", "broke before it judged: AttributeError"),
    ("blind", "judge=lambda seen, policy: []", "the control 'a word' was not caught"),
    ("without", "controls=()", "the gate has no controls"),
    ("exits", "judge=lambda seen, policy: exit(0)", "SystemExit"),
    ("numb", "controls=(Control('none', lambda seen: 1 / 0, 'word', 'x'),)", "ZeroDivisionError"),
    ("rowless", "cases=lambda policy, firmwares: ()", ""),
]


REFUSED = {
    "ends the program": ({"gates/test_motd.py": "import sys; sys.exit(0)\n"}, "SystemExit: 0"),
    "is not there": ({}, "'gates' has no test_*.py"),
    "is a built-in one's": (
        {"gates/test_motd.py": ONE.replace("'motd'", "'boot'") + TEST.replace("motd", "boot")},
        "the name of a built-in one",
    ),
    "is there twice": ({"gates/test_motd.py": ONE, "gates/test_more.py": ONE}, "holds a gate 'motd', and so does"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_anything_is_written(own: Bench, name: str) -> None:
    files, said = REFUSED[name]
    for path, text in files.items():
        gate(own, text, path)
    done = own.plain(*own.options())
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert said in done.errors
    assert "bench.toml" in done.errors
    assert "-> " in done.errors
    assert "Traceback" not in done.errors
    assert not (own.path / "osgates-evidence").exists()


def test_a_path_that_pytest_would_misread_is_refused_or_avoided(own: Bench) -> None:
    (own.path / "a[1]").mkdir()
    own.profile(HEAD + "[gate.motd]\n")
    gate(own, ONE + TEST, "a[1]/gates/test_motd.py")
    (own.path / "bench.toml").rename(own.path / "a[1]" / "bench.toml")
    arguments = ["--iso", own.iso, "--iso-distro"]
    done = own.plain(*arguments, "a[1]/bench.toml")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "pytest cannot take the path ./a[1]/gates/test_motd.py" in done.errors
    os.chdir(own.path / "a[1]")
    done = own.plain(*arguments, "bench.toml").check()
    assert (done.status, done.verdicts) == (0, {"motd": "PASS"}), done.output


def test_a_profile_elsewhere_brings_its_gates_along(own: Bench) -> None:
    """Beside a directory of tests that is not its own, and with the ini-file of where pytest is started."""
    gate(own, ONE + TEST, "distro/gates/test_motd.py")
    (own.path / "bench.toml").rename(own.path / "distro" / "bench.toml")
    (own.path / "distro" / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (own.path / "start").mkdir()
    (own.path / "start" / "pytest.ini").write_text("[pytest]\npython_files = nothing_*.py\ntestpaths = none\n")
    os.chdir(own.path / "start")
    for arguments in ((), ("-n", "1")):
        done = own.plain(f"--iso={own.iso}", "--iso-distro=../distro/bench.toml", *arguments).check()
        assert (done.status, done.verdicts) == (0, {"motd": "PASS"}), done.output


def test_without_an_iso_no_gate_is_imported(own: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with one, where the profile has no use for what is installed."""
    gate(own, "raise SystemExit('imported')\n")
    info = own.path / "site" / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (own.path / "site" / "acme.py").write_text("raise SystemExit('imported')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[osgates.gates]\nunused = acme:GATE\n")
    monkeypatch.setenv("PYTHONPATH", str(own.path / "site"), prepend=":")
    (own.path / "test_plain.py").write_text(
        "import sys\n\ndef test_plain():\n    assert 'acme' not in sys.modules\n"
        "    assert not [name for name in sys.modules if name.startswith('osgates_gates')]\n"
    )
    done = own.plain("--strict-config", "--strict-markers", "test_plain.py")
    assert (done.status, done.errors) == (0, ""), done.output
    own.profile()
    assert own.run().status == 0
    (info / "entry_points.txt").write_text("[osgates.gates]\nkconfig = acme:GATE\n")
    done = own.plain(*own.options(), "test_rows.py")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert re.search(r"acme 1\.0 holds a gate 'kconfig', which is the name of a built-in one", done.errors)


def test_after_a_failure_lf_leaves_passed_gates_out_as_it_does_built_in_ones(own: Bench) -> None:
    own.profile(HEAD + "[gate.motd]\n[gate.other]\n")
    gate(own, ONE + TEST)
    text = GATE + "GATE = make('other')\n" + TEST.replace("motd", "other")
    gate(own, text.replace("Seen()", "Seen(words=('bad',))"), "gates/test_other.py")
    assert judged(own).verdicts == {"motd": "PASS", "other": "FAIL"}
    again = judged(own, "--lf")
    assert again.verdicts == {"motd": "NOT PROVEN", "other": "FAIL"}
    assert again.record["selected"] == ["other"]
    single = judged(own, tests=("gates/test_other.py::test_other",))
    assert single.record["selected"] == ["other"]
    assert json.loads((single.root / "selected.json").read_text()) == ["other"]
