"""The table of what goes wrong: rows as data (``<kind>.toml``), the tests that prove them, and ``docs/faults.md``.

Run as a program it writes the document anew: ``python -m tests.faults.table``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from tests.e2e.conftest import Outcome

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "faults.md"
KINDS = {
    "input": "What is given to it",
    "disk": "What is given as an installed disk",
    "profile": "What the distro profile says",
    "guest": "What the guest does",
    "host": "What happens to the host",
    "user": "What the user does",
}
REFUSED = "refused"
# Which rows a test proves, by the names of modules in this directory; filled by `proves`.
PROVEN: dict[str, str] = {}
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class Fault:
    """One row. `status`: exit status; `verdict`: of the gate that met it, or ``refused``: no run began; `message`:
    words that the output has (``...`` stands for anything); `points`: at how many moments it is made."""

    kind: str
    name: str
    what: str
    status: int
    verdict: str
    message: str
    kept: str
    points: int = 1

    def said_in(self, output: str) -> bool:
        """Whether the message is in `output`, whatever the line breaks."""
        parts = [re.escape(" ".join(part.split())) for part in self.message.split("...")]
        return re.search(".*?".join(parts), " ".join(output.split())) is not None


@cache
def rows() -> dict[str, Fault]:
    """All rows by name, in the order of the files."""
    found: dict[str, Fault] = {}
    for kind in KINDS:
        data = tomllib.loads((HERE / f"{kind}.toml").read_text(encoding="utf-8"))
        for entry in data.get("row", ()):
            fault = Fault(kind=kind, **entry)
            assert fault.name not in found, fault.name
            found[fault.name] = fault
    return found


def proves(*names: str) -> Callable[[F], F]:
    """Decorates the test that proves these rows. A test with an argument ``fault`` is run once for each of them."""

    def mark(test: F) -> F:
        for name in names:
            assert name not in PROVEN, f"{name} is proven by {PROVEN[name]} already"
            PROVEN[name] = test.__name__
        arguments = test.__code__.co_varnames[: test.__code__.co_argcount]  # type: ignore[attr-defined]
        if "fault" in arguments:
            return pytest.mark.parametrize("fault", [pytest.param(rows()[name], id=name) for name in names])(test)
        return test

    return mark


def check(fault: Fault, outcome: Outcome, gate: str | None = None) -> None:
    """What holds for every row: exit status, verdict, message, evidence; no traceback, nothing hidden in the output.

    `gate` is the one that met the fault; None: every gate that was selected."""
    said = outcome.output
    assert fault.said_in(said), f"not said: {fault.message}\n{said}"
    assert outcome.status == fault.status, said
    assert "Traceback" not in said
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", said.replace("\r\n", "\n")) is None
    if fault.verdict == REFUSED:
        assert not outcome.verdicts, "a run began"
        assert "LAUNCH:" not in said
        return
    assert outcome.root is not None
    assert outcome.last_line.startswith(("LAUNCH: NOT READY", "LAUNCH: PARTIAL")) or fault.verdict == "PASS", said
    gates = outcome.verdicts["gates"]
    for name in [gate] if gate else outcome.verdicts["selected"]:
        assert gates[name]["verdict"] == fault.verdict, (name, gates[name])
    check_manifest(outcome.root)


def check_manifest(root: Path) -> None:
    """Every file of the evidence is listed, with its digest; of a run without a recorded end, what was finished."""
    manifest = json.loads((root / "manifest.json").read_text())
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    if manifest["ended"]:
        assert set(manifest["files"]) == there - {"manifest.json"}
    assert set(manifest["files"]) <= there
    assert "profile.toml" in manifest["files"]
    for name, entry in manifest["files"].items():
        data = (root / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}, name


def load_tests() -> None:
    """Import every module that proves rows."""
    for path in sorted(HERE.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")


def _lines() -> Iterator[str]:
    every = list(rows().values())
    points = sum(fault.points for fault in every)
    yield "# What goes wrong, and what is said of it"
    yield ""
    yield (
        f"{len(every)} faults, made at {points} moments in all. Each row is a test under `tests/faults` that makes"
        " the fault, reads exit status, verdict, message and evidence, and looks that no process is left; none has a"
        " traceback, and none is ever a PASS of the gate that met it unless the table says so. This page is made from"
        " the tests' own table by `python -m tests.faults.table`, and a test compares the two."
    )
    for kind, title in KINDS.items():
        chosen = [fault for fault in every if fault.kind == kind]
        yield ""
        yield f"## {title} ({len(chosen)})"
        yield ""
        yield "| fault | verdict | exit | it says | what is kept |"
        yield "|---|---|---|---|---|"
        for fault in chosen:
            times = f" (at {fault.points} moments)" if fault.points > 1 else ""
            words = (f"{fault.what}{times}", fault.verdict, str(fault.status), f"`{fault.message}`", fault.kept)
            yield "| " + " | ".join(map(_cell, words)) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def document() -> str:
    """``docs/faults.md``."""
    return "\n".join(_lines()) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
