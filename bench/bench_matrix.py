"""How long the whole matrix of the gate `tpm` takes, all rows in one run. Run on a quiet machine:

    .venv/bin/python bench/bench_matrix.py                   two workers
    .venv/bin/python bench/bench_matrix.py --workers 4       more
    .venv/bin/python bench/bench_matrix.py --machine DIR     on a machine that `osgates demo-disk --tpm` made
    .venv/bin/python bench/bench_matrix.py --evidence DIR    and the evidence of the run is kept there

Every row that the demo's machine should pass: all must. (Not `rdinit=/bin/sh` and `break=`, which give whoever asks a
shell in an initrd that initramfs-tools made, nor an option ROM, which its PCRs do not see.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.profiles import loader
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from tests.e2e.others import other_programs

WANTED_MINUTES = 45
MORE = (
    *("initrd-replaced", "db-key-added", "kernel-replaced", "boot-loader-replaced", "grub-console", "sysrq"),
    *("init-shell", "dracut-break", "debug-shell", "initrd-emergency", "emergency-target", "rescue-target"),
)


def profile(directory: Path, others: dict[str, Path]) -> Path:
    """That of the demo's machine, of which the gate `tpm` alone, with all of these rows."""
    required = [row for row in loader.load(loader.find("demo-tpm")).gates["tpm"].rows if "untampered" not in row]
    head, _, sections = loader.find("demo-tpm").read_text(encoding="utf-8").partition("[gate.luks]")
    text = f"{head}[gate.tpm]{sections.partition('[gate.tpm]')[2]}"
    text += f"tampers = {json.dumps([*required, *MORE])}\n"
    text += "".join(f"other_{name} = {json.dumps(str(path))}\n" for name, path in others.items())
    path = directory / "matrix.toml"
    path.write_text(text, encoding="utf-8")
    return path


def main(workers: int, machine: Path | None, evidence: Path | None) -> None:
    """Print rows, boots and minutes.

    :raise SystemExit: a row does not pass: its time means nothing.
    """
    iso = cached_demo_iso(lambda _stage, _fraction: None)
    with tempfile.TemporaryDirectory(prefix="osgates-bench-") as name:
        scratch = Path(name)
        if machine is None:
            machine = scratch / "machine"
            host = vm_host.select("auto", None)
            host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
            build_demo_machine(iso, machine, lambda _stage, _fraction: None, host)
        evidence = (evidence or scratch / "evidence").absolute()
        (scratch / "others").mkdir()
        distro = profile(scratch, other_programs(iso, scratch / "others"))
        command = [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadgroup"),
            *(
                f"--iso={iso}",
                f"--iso-disk={Home.at(machine.absolute()).disk}",
                f"--iso-distro={distro}",
                "-m",
                "tpm",
            ),
            *(f"--iso-evidence={evidence}", "-c", os.devnull, f"--rootdir={scratch}"),
            *("--pyargs", "pytest_osgates.gates"),
        ]
        begun = time.perf_counter()
        run = subprocess.run(command, cwd=scratch, check=False)
        minutes = (time.perf_counter() - begun) / 60
        found = sorted(evidence.glob("*/*/verdicts.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SystemExit(f"no figure: pytest ended with {run.returncode} and no verdict")
        verdicts = found[-1]
        rows = json.loads(verdicts.read_text(encoding="utf-8"))["gates"]["tpm"]["rows"]
        seen = [
            json.loads(path.read_text(encoding="utf-8")) for path in verdicts.parent.glob("observations/tpm/*.json")
        ]
        boots = sum(len(row["boots"]) for row in seen)
        failed = sorted(row for row, given in rows.items() if given["verdict"] != "PASS")
        if run.returncode or failed:
            raise SystemExit(f"no figure: not all rows passed: {', '.join(failed) or run.returncode}")
        print(
            f"{len(rows)} rows, {boots} boots, {workers} workers on {os.cpu_count()} processors:"
            f" {minutes:.1f} min (of {WANTED_MINUTES})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--machine", type=Path)
    parser.add_argument("--evidence", type=Path)
    given = parser.parse_args()
    main(given.workers, given.machine, given.evidence)
