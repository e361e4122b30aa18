"""The wheel holds what the repository holds, and works where nothing of the repository is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.guide import package, write_out

ROOT = Path(__file__).parents[2]


def _run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, argv)), cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, in a clean directory."""
    clone = tmp_path_factory.mktemp("source") / "clone"
    tracked = _run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, tracked):
        source, target = ROOT / name, clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode & 0o777)
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", out, clone, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; its dependencies are those of this environment."""
    venv = tmp_path_factory.mktemp("venv")
    _run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv)
    python = venv / "bin/python"
    site = next((venv / "lib").glob("python*/site-packages"))
    _run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", site, wheel),
        cwd=venv,
    )
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    # Only third-party packages: the editable install of this repository is a .pth file, which is not read from there.
    (site / "dependencies.pth").write_text(f"{here}\n")
    return python


def test_wheel_holds_every_file(wheel: Path) -> None:
    """Code, data, profiles, the demo's tree, and the two top-level folders under the package."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = _run("git", "ls-files", "pytest_osgates", "gates", "vm", cwd=ROOT).stdout.splitlines()
    expected = set()
    for name in tracked:
        if (ROOT / name).is_symlink() and name in {"pytest_osgates/gates", "pytest_osgates/vm"}:
            continue
        expected.add(name if name.startswith("pytest_osgates/") else f"pytest_osgates/{name}")
    assert expected - names == set()
    assert not any(name.startswith(("vm/", "gates/", "tests/")) for name in names)


def test_works_from_an_empty_directory(python: Path, tmp_path: Path) -> None:
    """The command starts, the profiles load, and the gates are found where no path is named."""
    _run(python, "-P", "-m", "pytest_osgates", "--version", cwd=tmp_path)
    probe = "from pytest_osgates.profiles.loader import *; print(*[load(p).name for p in built_in().values()])"
    assert "demo" in _run(python, "-P", "-c", probe, cwd=tmp_path).stdout.split()
    (tmp_path / "not.iso").write_bytes(b"text")
    done = subprocess.run(
        [python, "-P", "-m", "pytest", "--iso", "not.iso"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "not.iso" in done.stdout + done.stderr


def test_beside_a_project_with_its_own_vm(python: Path, tmp_path: Path) -> None:
    """A top-level ``vm`` of somebody else is neither taken for ours nor hidden by it."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/__init__.py").write_text("OWNER = 'somebody else'\n")
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates/__init__.py").write_text("raise RuntimeError('not yours')\n")
    probe = (
        "import vm; assert vm.OWNER == 'somebody else'\n"
        "from pytest_osgates.vm import errors, host\n"
        "from pytest_osgates.vm.errors import HostError\n"
        "assert errors.HostError is HostError and errors.__name__ == 'pytest_osgates.vm.errors'\n"
        "import pytest_osgates.gates.test_boot\n"
        "import sys; assert 'gates' not in sys.modules\n"
    )
    (tmp_path / "probe.py").write_text(probe)
    _run(python, "probe.py", cwd=tmp_path)


def test_a_gate_in_a_package_of_its_own(python: Path, tmp_path: Path) -> None:
    """The package of docs/writing-a-gate.md, installed by pip, judges an image that is not booted; then again."""
    write_out(tmp_path)
    package(tmp_path)
    out = tmp_path / "dist"
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", out, tmp_path, cwd=tmp_path)
    (built,) = out.glob("*.whl")
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    _run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"),
        *("--target", site, built),
        cwd=tmp_path,
    )
    start = tmp_path / "start"
    start.mkdir()
    (tmp_path / "my.toml").rename(start / "my.toml")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text("ID=osgates-demo\n")
    (tmp_path / "tree/live").mkdir(parents=True)
    squashfs = tmp_path / "tree/live/filesystem.squashfs"
    _run("mksquashfs", tmp_path / "root", squashfs, "-quiet", "-no-progress", cwd=tmp_path)
    (tmp_path / "tree/boot.img").write_bytes(bytes(2048))
    boot = ("-b", "boot.img", "-no-emul-boot")
    _run("xorriso", "-as", "mkisofs", "-quiet", *boot, "-o", start / "my.iso", tmp_path / "tree", cwd=tmp_path)

    done = _run(python, "-P", "-m", "pytest", "--iso=my.iso", "--iso-distro=my.toml", cwd=start)
    assert "osgates: gates that are not built in: writable (my_gates/test_writable.py of my-gates 1.0)" in done.stdout
    assert "LAUNCH: ALL REQUIRED PASS" in done.stdout
    again = _run(python, "-P", "-m", "pytest_osgates", "rejudge", "osgates-evidence", cwd=start)
    assert again.stdout.split() == ["writable", "image", "PASS"]
