"""How fast idle time passes with `--iso-time accelerated`, and whether it is the same time. Run on a quiet machine:

    .venv/bin/python bench/bench_clock.py            thirty idle minutes of the demo
    .venv/bin/python bench/bench_clock.py --day      twenty-four hours, with contacts planted at known times
    .venv/bin/python bench/bench_clock.py --twin 7200    so many seconds, accelerated and in real time, compared

The floor is the guest's own time: what a run in real time takes. Wall time is that between the first canary and the
last; boot and power-off come on top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pytest_osgates.demo import cached_demo_iso

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.quick import quick_profile
from tests.e2e.twins import Contact, compare, contacts, expected, plant, window


def run(iso: Path, directory: Path, seconds: int, mode: str) -> Path:
    """Watch once; the evidence directory."""
    directory.mkdir()
    profile = quick_profile(directory, idle_s=seconds)
    options = ("--iso", iso, "--iso-distro", profile, "--iso-time", mode, "--iso-accel", "tcg", "-m", "telemetry")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--iso-evidence", "ev", *map(str, options)],
        cwd=directory,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=4 * seconds + 3600,
    )
    found = [path.parent for path in directory.glob("ev/*/*/verdicts.json")]
    if len(found) != 1:
        raise SystemExit(done.stdout + done.stderr)
    return found[0]


def told(name: str, evidence: Path) -> None:
    """One line."""
    seconds, warp = window(evidence)
    gate = json.loads((evidence / "verdicts.json").read_text())["gates"]["telemetry"]
    print(
        f"{name:<34} {seconds / warp:10.1f} s   the guest's own time: {seconds:9.1f} s   "
        f"ratio {1 / warp:.4f}   {gate['verdict']}",
        flush=True,
    )


def planted(evidence: Path, seconds: float, *, sparse: bool = False) -> list[Contact]:
    """The contacts in a capture, and on stdout how far they are from where they were planted."""
    (capture,) = evidence.glob("machines/*/net0.pcap")
    seen = [contact for contact in contacts(capture) if contact.at <= seconds]
    when = {contact.name: contact.at for contact in seen}
    wanted = expected(seconds, sparse=sparse)
    single = [contact for contact in wanted if contact.name.startswith("once-")]
    late = [when[contact.name] - contact.at for contact in single if contact.name in when]
    print(
        f"  contacts seen: {len(seen)} of {len(wanted)}; single timers: {len(late)} of {len(single)}",
        end="",
    )
    print(f", late by {min(late):.2f} to {max(late):.2f} s" if late else "", flush=True)
    return seen


def told_apart(quick: list[Contact], real: list[Contact]) -> None:
    """Names, order and times of two runs."""
    found = compare(quick, real)
    print(f"  each name as often in both: {'yes' if found.names else 'NO'}")
    if found.names:
        print(f"  times differ by at most {found.seconds:.2f} s, {100 * found.share:.3f} per cent of the time")
        apart = f", at most {max(found.swapped):.1f} s apart" if found.swapped else ""
        print(f"  pairs in another order: {len(found.swapped)}{apart}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--day", action="store_true")
    parser.add_argument("--twin", type=int, metavar="SECONDS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if not options.day and options.twin is None:
            told(
                "thirty idle minutes, accelerated",
                run(cached_demo_iso(_quiet), directory / "idle", 1800, "accelerated"),
            )
            return
        faults = {False: directory / "twin", True: directory / "twin-sparse"}
        for sparse, fault in faults.items():
            fault.mkdir()
            plant(fault, sparse=sparse)
        if options.day:
            iso = cached_demo_iso(_quiet, faults[True])
            evidence = run(iso, directory / "day", 86_400, "accelerated")
            told("24 hours, accelerated", evidence)
            planted(evidence, 86_340, sparse=True)
        if options.twin is not None:
            iso = cached_demo_iso(_quiet, faults[False])
            seen: dict[str, list[Contact]] = {}

            def watch(mode: str) -> None:
                evidence = run(iso, directory / mode, options.twin, mode)
                told(f"{options.twin} s, {mode}", evidence)
                seen[mode] = planted(evidence, options.twin - 60)

            # The real one idles nearly all the time: the other is run beside it.
            beside = threading.Thread(target=watch, args=("real",))
            beside.start()
            watch("accelerated")
            beside.join()
            told_apart(seen["accelerated"], seen["real"])


def _quiet(stage: str, fraction: float | None) -> None:
    """The build's progress goes nowhere."""


if __name__ == "__main__":
    main()
