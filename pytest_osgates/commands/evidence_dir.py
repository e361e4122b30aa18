"""Reading a run's evidence back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pytest_osgates.evidence import Evidence
from pytest_osgates.model import AnyGate, Observation
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import GateSection, Profile
from pytest_osgates.vm.errors import HostError, UsageError
from pytest_osgates.vm.text import one_line


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

    Evidence may be anyone's: gates are loaded from where the user's own profile says, or from what is installed,
    never from where the profile in the evidence says.

    :raise UsageError: it cannot be read.
    """
    if given is None:
        return loader.load(evidence.root / "profile.toml", code=False)
    return loader.load(loader.find(given))


def record_of(verdicts: Mapping[str, Any], gate: str) -> dict[str, Any]:
    """What ``verdicts.json`` says of one gate; empty if nothing that makes sense."""
    found = verdicts["gates"].get(gate)
    return found if isinstance(found, dict) else {}


def rows_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of one gate."""
    rows = record.get("rows")
    return {str(case): row for case, row in rows.items() if isinstance(row, dict)} if isinstance(rows, dict) else {}


def read_row(evidence: Evidence, row: Mapping[str, Any], gate: AnyGate) -> Observation:
    """What was observed for one row.

    :raise HostError: it is not what the run recorded, or not what this gate observes.
    """
    path = str(row.get("observation"))
    try:
        if not (evidence.root / path).resolve().is_relative_to(evidence.root.resolve()):
            raise HostError(f"{path} lies outside the evidence")
        digest = hashlib.sha256((evidence.root / path).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise HostError(f"{path} cannot be read: {error}") from error
    if digest != row.get("sha256"):
        raise HostError(f"{path} is not what the run recorded (another SHA-256)")
    return cast("Observation", evidence.read_observation(path, gate.observation))


def absence(record: Mapping[str, Any], section: GateSection) -> str:
    """Why a gate that the run had cannot be judged here; empty: it can."""
    came = record.get("from")
    if section.gate is None:
        if not isinstance(came, dict):
            return section.absent
        if came.get("entry_point"):
            return f"its code is not here: install {one_line(str(came.get('distribution')), 100)}"
        where = one_line(str(came.get("path")), 200)
        return f"its code is not here: {where}; name the profile that leads to it with --iso-distro FILE.toml"
    if rows_of(record) and isinstance(came, dict) != (section.outside is not None):
        now, then = ("not ", "") if section.outside is not None else ("", "not ")
        return f"the gate {section.name!r} is {now}built in here, and was {then}built in where the run was made"
    return ""


def another_version(record: Mapping[str, Any], section: GateSection) -> str:
    """That a gate from outside has other code than in the run; empty if it has not."""
    came = record.get("from")
    if section.outside is None or not isinstance(came, dict):
        return ""
    origin = section.outside.origin
    now, then = ({origin.path.rpartition("/")[2]: origin.sha256, **origin.beside}, came.get("beside"))
    before = {
        str(came.get("path")).rpartition("/")[2]: came.get("sha256"),
        **(then if isinstance(then, dict) else {}),
    }
    names = sorted(name for name in {*now, *before} if now.get(name) != before.get(name))
    return f"other code than in the run: {one_line(', '.join(names), 300)} (another SHA-256)" if names else ""


def observations(evidence: Evidence, gate: str) -> list[Path]:
    """The observation files of one gate."""
    single = evidence.root / "observations" / f"{gate}.json"
    folder = evidence.root / "observations" / gate
    return [single] if single.is_file() else sorted(folder.glob("*.json"))
