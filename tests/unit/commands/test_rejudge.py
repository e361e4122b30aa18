"""``osgates rejudge``: only what a run really observed, on the state that is asked about, is judged again."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from lynis_samples import Story
from rich.console import Console

from pytest_osgates.checks.lynis import GATE
from pytest_osgates.cli import build_parser, main

PROFILE = """schema = 1
name = "p"
[gate.lynis]
state = "{state}"
[[gate.lynis.accept_skipped]]
because = "Incorrect guest OS *"
reason = "this is Linux"
tests = [{tests}]
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The evidence of a run with one gate, observed on a live session."""
    root = tmp_path / "evidence/abc/20260101T000000Z-0"
    (root / "observations").mkdir(parents=True)
    data = Story().seen().model_dump_json().encode()
    (root / "observations/lynis.json").write_bytes(data)
    (root / "profile.toml").write_text(profile("live"))
    record(root, {"": {"observation": "observations/lynis.json", "sha256": hashlib.sha256(data).hexdigest()}})
    return root


def profile(state: str) -> str:
    return PROFILE.format(state=state, tests=", ".join(f'"{test}"' for test, _ in Story().skipped))


def record(root: Path, rows: dict[str, Any]) -> None:
    (root / "verdicts.json").write_text(json.dumps({"gates": {"lynis": {"rows": rows}}}))


def rejudge(*arguments: object) -> tuple[int, str]:
    """Exit status and text."""
    options = build_parser().parse_args(["rejudge", *map(str, arguments)])
    out = io.StringIO()
    return options.run(options, Console(file=out, width=200)), out.getvalue()


def test_what_was_observed_is_judged_again(run: Path) -> None:
    assert rejudge(run)[0] == 0
    status, text = rejudge(run.parents[1])
    assert (status, "PASS" in text) == (0, True)


def test_an_observation_of_one_state_proves_nothing_of_another(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(profile("installed"))
    status, text = rejudge(run, "--iso-distro", tmp_path / "other.toml")
    assert status == 10
    assert "NOT PROVEN" in text
    assert "another state than installed" in text


def test_a_stricter_profile_is_judged_by(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(profile("live").replace("[[", "minimum = 100\n[[", 1))
    assert rejudge(run, "--iso-distro", tmp_path / "other.toml")[0] == 0
    (tmp_path / "other.toml").write_text(profile("live").replace('reason = "this is Linux"', 'reason = ""'))
    status, text = rejudge(run, "--iso-distro", tmp_path / "other.toml")
    assert status == 10
    assert "skipped" in text


@pytest.mark.parametrize("path", ["../../../outside.json", "/etc/passwd", "observations/none.json"])
def test_no_path_leads_out_of_the_evidence(run: Path, tmp_path: Path, path: str) -> None:
    data = (run / "observations/lynis.json").read_bytes()
    (tmp_path / "outside.json").write_bytes(data)
    record(run, {"": {"observation": path, "sha256": hashlib.sha256(data).hexdigest()}})
    status, text = rejudge(run)
    assert status == 10
    assert "NOT PROVEN" in text


def test_an_observation_that_was_changed_since_is_not_judged(run: Path) -> None:
    path = run / "observations/lynis.json"
    path.write_bytes(path.read_bytes().replace(b'"status":0', b'"status": 0'))
    status, text = rejudge(run)
    assert status == 10
    assert "another SHA-256" in text


def test_a_run_that_observed_nothing_is_not_proven(run: Path) -> None:
    record(run, {})
    status, text = rejudge(run)
    assert status == 10
    assert "NOT PROVEN" in text


def test_a_gate_whose_baseline_breaks_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> str:
        raise KeyError("its own fault")

    assert main(["baseline", "lynis", "--evidence", str(run)]) == 0
    # Gates are frozen.
    monkeypatch.setitem(vars(GATE), "baseline", broken)
    capsys.readouterr()
    assert main(["baseline", "lynis", "--evidence", str(run)]) == 3
    assert "the gate 'lynis' broke: KeyError: 'its own fault'" in capsys.readouterr().err
