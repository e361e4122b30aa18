"""Reading a run's evidence back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_osgates.evidence import Evidence
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import Profile
from pytest_osgates.vm.errors import UsageError


def open_run(text: str) -> tuple[Evidence, dict[str, Any]]:
    """The evidence of one run and its ``verdicts.json``. `text` may be the run's directory or one above it, which
    then means its newest run.

    :raise UsageError: there is no evidence.
    """
    base = Path(text)
    found = sorted(base.glob("**/verdicts.json"), key=lambda path: path.parent.name) if base.is_dir() else []
    if not found:
        raise UsageError(f"no evidence of a run in {text}", remedy="give a directory that holds verdicts.json")
    root = found[-1].parent
    try:
        verdicts = json.loads((root / "verdicts.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{root}/verdicts.json cannot be read: {error}") from error
    if not isinstance(verdicts, dict) or not isinstance(verdicts.get("gates"), dict):
        raise UsageError(f"{root}/verdicts.json is not what a run writes")
    return Evidence(root), verdicts


def profile_of(evidence: Evidence, given: str | None) -> Profile:
    """The profile of the run, or another one that the user names.

    :raise UsageError: it cannot be read.
    """
    return loader.load(evidence.root / "profile.toml" if given is None else loader.find(given))


def observations(evidence: Evidence, gate: str) -> list[Path]:
    """The observation files of one gate."""
    single = evidence.root / "observations" / f"{gate}.json"
    folder = evidence.root / "observations" / gate
    return [single] if single.is_file() else sorted(folder.glob("*.json"))
