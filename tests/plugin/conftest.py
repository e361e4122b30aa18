"""Runs pytest as a user does, in a process of its own, on an ISO that is real and too small to boot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_osgates.vm.process import run

SAMPLES = Path(__file__).parents[1] / "unit"

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["uefi", "bios"]
[gate.boot]
deadline_s = 600
watch_s = 60
[gate.kconfig]
parameters = ["BOOT_IMAGE=*", "quiet"]
"""

# Every row of both gates judges a clean observation, unless the test at hand puts something else into `change`.
ROWS = """
import pytest
from gate_samples import *
from pytest_osgates.checks.boot import Outcome, UnitFailure

def change(case, seen):
    return seen

{extra}

@pytest.mark.boot
def test_boot(os_case, os_judge):
    firmware, _, way = os_case.rpartition("-")
    seen = (booted if way == "channel" else bare)(case=os_case, firmware=firmware)
    os_judge(change(os_case, seen))

@pytest.mark.kconfig
def test_kernel(os_judge):
    os_judge(change("kconfig", kernel()))
"""
BOOT_ROWS = ("uefi-channel", "uefi-bare", "bios-channel", "bios-bare")


@dataclass
class Done:
    """A finished run of pytest."""

    status: int
    output: str
    errors: str = ""
    junit_path: Path | None = None

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @cached_property
    def root(self) -> Path:
        """The run's evidence: what the last line but one names."""
        assert self.lines[-2].startswith("evidence: "), self.output
        return Path(self.lines[-2].removeprefix("evidence: "))

    @cached_property
    def record(self) -> dict[str, Any]:
        """``verdicts.json``."""
        found: dict[str, Any] = json.loads((self.root / "verdicts.json").read_text())
        return found

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: gate["verdict"] for name, gate in self.record["gates"].items()}

    def row_verdicts(self, gate: str) -> dict[str, str]:
        return {case: row["verdict"] for case, row in self.record["gates"][gate]["rows"].items()}

    def reasons(self, gate: str) -> str:
        return "\n".join(self.record["gates"][gate]["reasons"])

    @cached_property
    def junit(self) -> dict[str, tuple[set[str], dict[str, str]]]:
        """For each test case of the JUnit report: the elements in it, and its properties (the last of each name)."""
        assert self.junit_path is not None
        cases = {}
        for case in ElementTree.parse(self.junit_path).iter("testcase"):  # noqa: S314  (written by pytest)
            properties = {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
            cases[str(case.get("name"))] = ({child.tag for child in case} - {"properties"}, properties)
        return cases

    def check(self) -> Done:
        """What holds for every run that began, whatever its outcome. Itself."""
        assert self.lines[-1].startswith("LAUNCH: "), self.output + self.errors
        assert sum(line.startswith("LAUNCH: ") for line in self.lines) == 1
        assert "\x1b" not in self.output
        launch = self.lines[-1].removeprefix("LAUNCH: ").partition(" (")[0]
        assert self.record["launch"] == launch
        selected = {self.verdicts[name] for name in self.record["selected"]}
        required = {name for name, gate in self.record["gates"].items() if gate["required"]}
        if self.status == 0:
            assert selected <= {"PASS"}
        if "FAIL" in selected and self.status < 2:
            assert self.status == 1
        if launch == "ALL REQUIRED PASS":
            assert self.status == 0
            assert required <= set(self.record["selected"])
        assert launch != "READY"
        return self

    def check_manifest(self) -> Done:
        """Every file of the evidence is listed with its digest. Itself."""
        manifest = json.loads((self.root / "manifest.json").read_text())
        there = {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}
        assert set(manifest["files"]) == there - {"manifest.json"}
        for name, entry in manifest["files"].items():
            data = (self.root / name).read_bytes()
            assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}, name
        return self


class Bench:
    """A directory with a profile, tests and an ISO, in which pytest is run."""

    def __init__(self, pytester: pytest.Pytester, iso: Path) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.iso = iso
        self.profile()
        self.rows()

    def profile(self, text: str = PROFILE) -> None:
        (self.path / "bench.toml").write_text(text)

    def rows(self, extra: str = "", name: str = "test_rows.py") -> None:
        """The tests of all rows; `extra` may define another `change`."""
        (self.path / name).write_text(ROWS.format(extra=extra))

    def tests(self, text: str, name: str = "test_rows.py") -> None:
        (self.path / name).write_text("import pytest\nfrom gate_samples import *\n" + text)

    def plain(self, *arguments: str | Path) -> Done:
        """Run pytest with nothing but `arguments`."""
        # Hypothesis takes a second to load and has no part in this.
        result = self.pytester.runpytest_subprocess("-p", "no:hypothesispytest", *arguments, timeout=90)
        return Done(int(result.ret), result.stdout.str(), result.stderr.str())

    def options(self, *arguments: str | Path) -> list[str]:
        return ["--iso", str(self.iso), "--iso-distro", "bench.toml", *map(str, arguments)]

    def run(self, *arguments: str | Path, tests: Sequence[str] = ("test_rows.py",)) -> Done:
        """Judge the ISO by `tests`, and check what always holds."""
        done = self.plain(*self.options("--junitxml", "junit.xml", *arguments), *tests)
        done.junit_path = self.path / "junit.xml"
        return done.check()


@pytest.fixture(scope="session")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live ISO that says ID=osgates-test and holds nothing else."""
    return make_iso(tmp_path_factory.mktemp("iso"), {})


def make_iso(base: Path, files: Mapping[str, int]) -> Path:
    """An ISO of this kind with more `files`: their paths and modes."""
    (base / "root" / "etc").mkdir(parents=True)
    (base / "root" / "etc" / "os-release").write_text("ID=osgates-test\n")
    for name, mode in files.items():
        file = base / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.chmod(mode)
    (base / "tree" / "live").mkdir(parents=True)
    squashfs = base / "tree" / "live" / "filesystem.squashfs"
    pack = ["mksquashfs", str(base / "root"), str(squashfs), "-quiet", "-no-progress", "-processors", "1"]
    run([*pack, "-mem", "64M"], timeout=60)
    path = base / "test.iso"
    (base / "tree" / "boot.img").write_bytes(bytes(2048))
    boot = ("-b", "boot.img", "-no-emul-boot")
    run(["xorriso", "-as", "mkisofs", "-quiet", "-R", *boot, "-o", str(path), str(base / "tree")], timeout=60)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all these runs: accelerators are probed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(pytester: pytest.Pytester, iso: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """An environment of its own: no cache, temporary directory or settings of the user, and no outer xdist."""
    (cache / "tmp").mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TMPDIR", str(cache / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(SAMPLES))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return Bench(pytester, iso)
