"""What `osgates diff` takes, against a floor in the same run: hashing both images with hashlib, one after the other.

    bench/bench_diff.py [--keep DIR] [--scale S] [--rounds N] [--large] [--peers] [CASE ...]

Pairs are made first (bench/diff_pairs.py), always the same bytes; with --keep they are made once. --scale 0.1 makes
them a tenth as large. Each round runs the floor and then ours; the fastest of each are shown, for what else the
machine does can only make them slower. For images that are the same, hashing both at once, in two threads, is shown
as well: no comparison that reads all of both is faster than that on this host. Peak memory is that of the child
(wait4). --peers adds what other programs take for the pair `zstd`, and how many of the planted differences their
output names; each has eight minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from diff_pairs import PLANTED, Shape, make_iso, make_squashfs

LIMIT_S = 480
MEMORY_LIMIT = 8 << 30
FLOOR = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256").hexdigest()
"""
# The same with a thread for each: what two processors of this host are worth.
AT_ONCE = """
import concurrent.futures, hashlib, sys
def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(digest, sys.argv[1:]))
"""


@dataclass(frozen=True)
class Case:
    """A pair, and what is demanded of it: wall time over the floor, and peak memory in MB."""

    name: str
    shape: Shape
    compression: str
    ratio: float
    memory: int
    planted: bool = True
    options: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


ZSTD = ("-Xcompression-level", "3")
CASES = (
    Case("zstd", Shape(75_000, 1200), "zstd", 1.7, 120, options=(ZSTD, ZSTD)),
    Case("same", Shape(75_000, 1200), "zstd", 0.7, 60, planted=False, options=(ZSTD, ZSTD)),
    Case("xz", Shape(75_000, 1000), "xz", 2.0, 120),
    Case(
        "recompressed",
        Shape(75_000, 1200),
        "zstd",
        5.0,
        150,
        planted=False,
        options=(ZSTD, ("-Xcompression-level", "6")),
    ),
    Case("large", Shape(300_000, 4000), "zstd", 1.7, 250, options=(ZSTD, ZSTD)),
)


@dataclass(frozen=True)
class Ran:
    """A finished child: seconds of wall and of processor time, peak memory in MB, exit status (negative: signal)."""

    wall: float
    cpu: float
    memory: float
    status: int


def run(command: list[str], output: Path | None = None) -> Ran:
    """Run a command to its end, at most LIMIT_S seconds."""
    with (output or Path(os.devnull)).open("wb") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - begun > LIMIT_S:
                os.killpg(process.pid, signal.SIGKILL)
                _, status, usage = os.wait4(process.pid, 0)
                break
            time.sleep(0.002)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    return Ran(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, process.returncode)


def pair(case: Case, where: Path, scale: float) -> tuple[Path, Path]:
    """The images of a case, made if they are not there."""
    shape = Shape(int(case.shape.nodes * scale), int(case.shape.megabytes * scale))
    images: list[Path] = []
    for number, planted in enumerate((False, case.planted)):
        options = case.options[number]
        key = f"{case.compression}-{shape.nodes}-{shape.megabytes}-{'b' if planted else 'a'}{''.join(options)}"
        image = where / f"{key}.iso"
        if case.name == "same" and number:
            image = where / f"{key}-copy.iso"
            if not image.exists():
                shutil.copyfile(images[0], image)
        elif not image.exists():
            squashfs = where / f"{key}.squashfs"
            make_squashfs(squashfs, shape, planted, case.compression, *options)
            make_iso(where / "partial.iso", squashfs)
            (where / "partial.iso").rename(image)
            squashfs.unlink()
        # What is still to be written would be written during a measurement.
        with image.open("rb") as made:
            os.fsync(made.fileno())
        images.append(image)
    return images[0], images[1]


def measure(case: Case, a: Path, b: Path, rounds: int) -> None:
    """The floor and ours in turns."""
    osgates = [sys.executable, "-m", "pytest_osgates", "diff", str(a), str(b)]
    floors, both, own = [], [], []
    for _ in range(rounds):
        if not case.planted:
            both.append(run([sys.executable, "-c", AT_ONCE, str(a), str(b)]))
        floors.append(run([sys.executable, "-c", FLOOR, str(a), str(b)]))
        own.append(run(osgates))
    floor, ours = (min(ran, key=lambda entry: entry.wall) for ran in (floors, own))
    ratio = ours.wall / floor.wall
    memory = max(entry.memory for entry in own)
    verdict = "ok" if ratio <= case.ratio and memory <= case.memory else "TOO MUCH"
    print(
        f"{case.name:<13} {a.stat().st_size / 1e6:6.0f} MB  floor {floor.wall:6.2f} s ({floor.cpu:5.2f} cpu)  "
        f"ours {ours.wall:6.2f} s ({ours.cpu:5.2f} cpu)  ratio {ratio:4.2f} (of {case.ratio})  "
        f"{memory:4.0f} MB (of {case.memory})  {verdict}"
    )
    if both:
        least = min(entry.wall for entry in both)
        print(f"{'':<13} both hashed at once: {least:.2f} s, {least / floor.wall:.2f} of the floor", flush=True)


def peers(a: Path, b: Path, where: Path) -> None:
    """What others take for the same pair, and what of the planted list their output has."""
    commands: dict[str, list[str]] = {
        "osgates diff": [sys.executable, "-m", "pytest_osgates", "diff", "--examples", "50", str(a), str(b)],
        "diffoscope": ["diffoscope", "--text", "-", str(a), str(b)],
    }
    parts = []
    for image in (a, b):
        squashfs = where / f"{image.stem}.squashfs"
        if not squashfs.exists():
            extract = ["xorriso", "-no_rc", "-osirrox", "on", "-indev", str(image)]
            run([*extract, "-extract", "/live/filesystem.squashfs", str(squashfs)])
        parts.append(squashfs)
    commands["sqfsdiff"] = ["sqfsdiff", "-a", str(parts[0]), "-b", str(parts[1])]
    commands["unsquashfs -ll"] = [
        *("sh", "-c", 'unsquashfs -lln "$1" >"$3"; unsquashfs -lln "$2" | diff "$3" -', "sh"),
        *(str(parts[0]), str(parts[1]), str(where / "listing")),
    ]
    commands["xorriso"] = [
        *("sh", "-c", 'for i in "$1" "$2"; do xorriso -no_rc -indev "$i" -find / -exec lsdl -- ; done', "sh"),
        *(str(a), str(b)),
    ]
    for name, command in commands.items():
        if command[0] != "sh" and shutil.which(command[0]) is None:
            print(f"{name:<15} is not installed")
            continue
        output = where / "peer.txt"
        # One of them takes all memory that there is, and with it what others have.
        ran = run(["prlimit", f"--as={MEMORY_LIMIT}", *command], output)
        text = output.read_text(errors="replace")
        found = [path for path in PLANTED if path in text or path.lstrip("/") in text]
        ended = "killed" if ran.status < 0 else f"status {ran.status}"
        print(
            f"{name:<15} {ran.wall:7.2f} s  {ran.memory:6.0f} MB  {ended}; {len(found)} of {len(PLANTED)} planted, "
            f"{len(text.splitlines())} lines"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="osgates-bench-") as scratch:
        where = options.keep or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if (options.cases and case.name not in options.cases) or (case.name == "large" and not options.large):
                continue
            # In a process of its own: a measured child begins with the peak memory of this one (getrusage(2)).
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
                a, b = maker.submit(pair, case, where, options.scale).result()
            measure(case, a, b, options.rounds)
            if case.name == "zstd" and options.peers:
                peers(a, b, where)


if __name__ == "__main__":
    main()
