"""Real boots. Every fixture here that builds an ISO takes it from the cache, or builds it once for all workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.demo import cached_demo_iso

PROFILES = Path(__file__).parent / "profiles"
RUN_SECONDS = 5400.0


def quiet(stage: str, fraction: float | None) -> None:
    """Builders' progress goes nowhere in tests."""


@pytest.fixture(scope="session")
def demo_iso() -> Path:
    """The demo ISO."""
    return cached_demo_iso(quiet)


@pytest.fixture(scope="session")
def fault_iso() -> Callable[[str | Path], Path]:
    """Makes a fault image by name or from a directory."""
    return lambda fault: cached_demo_iso(quiet, fault)


@dataclass
class Outcome:
    """What a run of the gates left."""

    status: int
    output: str
    verdicts: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None

    @property
    def last_line(self) -> str:
        """The last line of the output."""
        return self.output.rstrip("\n").rpartition("\n")[2]

    def findings(self, gate: str) -> set[tuple[str, str]]:
        """(rule, subject) of what decided the verdict."""
        return {
            (finding["rule"], finding["subject"])
            for finding in self.verdicts["gates"][gate]["findings"]
            if finding["severity"] in {"violation", "unproven"}
        }


class Gates:
    """Starts ``pytest --iso`` as a user would, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.evidence = directory / "evidence"

    def start(
        self, *arguments: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start a run. `prefix`: a program that becomes pytest, with its arguments."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        return subprocess.Popen(
            [
                *prefix,
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts="),
                *("--iso-evidence", str(self.evidence), *map(str, arguments)),
            ],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, **(env or {})},
        )

    def run(self, *arguments: str | Path, env: dict[str, str] | None = None) -> Outcome:
        """Run to the end."""
        process = self.start(*arguments, env=env)
        return self.finish(process)

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for a started run."""
        try:
            output, _ = process.communicate(timeout=RUN_SECONDS)
        finally:
            process.kill()
        outcome = Outcome(process.returncode, output)
        for path in self.evidence.glob("*/*/verdicts.json"):
            outcome.root = path.parent
            outcome.verdicts = json.loads(path.read_text())
        # Shown by pytest if the test fails.
        sys.stdout.write(output)
        return outcome

    def machines(self) -> list[int]:
        """Pids of the QEMU and swtpm processes that belong to runs of this directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                program = command[0].rpartition(b"/")[2]
                ours = f"PWD={self.directory}".encode() in environment or str(self.directory).encode() in environment
                if program in {b"qemu-system-x86_64", b"swtpm"} and ours:
                    found.append(int(entry.name))
        return found


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds} s")


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    """Runs gates; afterwards no machine may be left."""
    runner = Gates(tmp_path)
    os.environ["OSGATES_TEST_DIRECTORY"] = str(tmp_path)
    yield runner
    left = runner.machines()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"left running: {left}"
