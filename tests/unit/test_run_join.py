"""A worker runs what the controller runs, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_osgates.evidence import Evidence
from pytest_osgates.profiles import loader
from pytest_osgates.run import Request, Run
from pytest_osgates.vm.errors import UsageError

GATE = """
from pytest_osgates.model import Gate, Observation, Policy, State
from .helper import TITLE
GATE = Gate(name="motd", title=TITLE, states=(State.IMAGE,), observation=Observation, policy=Policy,
            judge=lambda seen, policy: [], controls=())
"""
HEAD = 'schema = 1\nname = "p"\ngates = ["gates"]\n'


@pytest.fixture
def sent(tmp_path: Path) -> str:
    """What the controller sends to a worker."""
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "test_motd.py").write_text(GATE)
    (tmp_path / "gates" / "helper.py").write_text("TITLE = 'x'\n")
    (tmp_path / "p.toml").write_text(HEAD + "[gate.motd]\n[gate.boot]\n")
    request = Request(tmp_path / "x.iso", "p.toml", None, tmp_path / "evidence", "tcg", {})
    profile = loader.load(tmp_path / "p.toml")
    return json.dumps(Run(request, profile, "0" * 64, 1, Evidence(tmp_path), "id").to_worker())


def test_a_worker_loads_the_same_gates(sent: str) -> None:
    run = Run.join({**json.loads(sent), "pace": 2.5})
    # What the controller measured, not what is measured anew beside other workers.
    assert run.host.pace == 2.5
    assert list(run.profile.gates) == ["motd", "boot"]
    assert run.cases("motd") == ("",)
    assert run.profile.gates["motd"].outside is not None


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("p.toml", HEAD + "[gate.motd]\n", "p.toml changed while the run began"),
        ("gates/test_motd.py", GATE + "\n", "the gate motd changed while the run began"),
        ("gates/helper.py", "TITLE = 'y'\n", "the gate motd changed while the run began"),
    ],
)
def test_a_worker_refuses_to_run_another_profile_or_gate(
    sent: str, tmp_path: Path, path: str, text: str, said: str
) -> None:
    (tmp_path / path).write_text(text)
    with pytest.raises(UsageError, match=said):
        Run.join(json.loads(sent))
