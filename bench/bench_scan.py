"""What the scan for networked programs takes, against a floor in the same run: the SHA-256 of the same files, read
through the same reader.

    bench/bench_scan.py [--image ISO] [--keep DIR] [--root DIR] [--files N] [--megabytes M] [--rounds N]
                        [--pyelftools]

Without --image one is made of this machine's programs, libraries and other files (--root, by default /usr), as many
files (75,000) and megabytes as wanted, zstd level 3; with --keep it is made once. Each round runs the floor and then
ours, each in a process of its own; the fastest of each are shown, for what else the machine does can only make them
slower. Peak memory is that of the process (wait4). --pyelftools adds what pyelftools takes to read the imports and
needed libraries of the same files, without reading them from the image (where it is installed; once).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS, MEGABYTES = 15.0, 300
# Larger ones are toolchains, which no live image has, and each would be a twentieth of the whole.
LARGEST = 48 << 20
# Walks the image and reads what the scan must look at: all that may be run, and all libraries.
FLOOR = """
import hashlib, sys
from pytest_osgates.image.contents import FileContents
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.image.tree import FileKind
from pytest_osgates.image.walk import walk
files = size = 0
with open_root(sys.argv[1]) as view:
    for node in walk(view):
        files += 1
        if node.inode.kind is FileKind.FILE and (node.inode.mode & 0o111 or ".so" in node.path.rpartition("/")[2]):
            digest = hashlib.sha256()
            for chunk in FileContents(node.filesystem, node.inode, node.path).chunks():
                digest.update(chunk)
            size += node.inode.size
print(files, size)
"""
OURS = """
import sys
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.observers.networked.scan import scan
with open_root(sys.argv[1]) as view:
    seen = scan(view)
print(seen.files, seen.elves, seen.scripts, seen.libraries, len(seen.entries), len(seen.unreadable))
"""


@dataclass(frozen=True)
class Ran:
    """A finished child: seconds of wall and of processor time, peak memory in MB, what it printed."""

    wall: float
    cpu: float
    memory: float
    output: str


def run(code: str, image: Path) -> Ran:
    """Run Python code on an image."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(image)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Ran(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output.strip())


def choose(root: Path, files: int, megabytes: int) -> Iterator[Path]:
    """Programs and libraries first, then of the rest as many as fit, evenly over all of it; and all links."""
    first: list[tuple[Path, int]] = []
    rest: list[tuple[Path, int]] = []
    for directory, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(directory, name)
            status = path.lstat()
            if path.is_symlink():
                yield path
            elif path.is_file():
                program = bool(status.st_mode & 0o111) or ".so" in name
                if status.st_size <= (LARGEST if program else LARGEST >> 6):
                    (first if program else rest).append((path, status.st_size))
    left, room = files, megabytes << 20
    # As much of it programs and libraries as of a desktop's live image.
    kept = room * 2 // 5
    for path, size in first:
        if left and size <= room - kept:
            left, room = left - 1, room - size
            yield path
    step = max(1, len(rest) // max(1, left))
    for path, size in (*rest[::step], *(entry for number, entry in enumerate(rest) if number % step)):
        if left and size <= room:
            left, room = left - 1, room - size
            yield path


def make_image(image: Path, root: Path, files: int, megabytes: int) -> None:
    """A live ISO of `root`, with the links of /bin and /lib and the data base of packages."""
    more = [Path(path) for path in ("/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.conf") if Path(path).exists()]
    more += sorted(Path("/etc/ld.so.conf.d").glob("*")) + sorted(Path("/var/lib/dpkg/info").glob("*.list"))
    more += [path for path in (Path("/var/lib/dpkg/status"),) if path.exists()]
    names = b"\0".join(os.fsencode(path.relative_to("/")) for path in (*choose(root, files, megabytes), *more))
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        live = Path(scratch, "live")
        live.mkdir()
        listed = Path(scratch, "names")
        listed.write_bytes(names)
        tar = ["tar", "--create", "--directory=/", "--no-recursion", "--null", f"--files-from={listed}", "--owner=0"]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
            squash = ["mksquashfs", "-", str(live / "filesystem.squashfs"), "-tar", "-quiet", "-no-progress"]
            options = ["-comp", "zstd", "-Xcompression-level", "3"]
            subprocess.run([*squash, *options], stdin=packing.stdout, check=True)
        subprocess.run(
            ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(image), "-iso-level", "3", scratch], check=True
        )


def pyelftools(image: Path) -> None:
    """The same question, asked of pyelftools; the time is its own, without that of reading and uncompressing."""
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError:
        print("pyelftools     is not installed")
        return
    from pytest_osgates.image.contents import FileContents
    from pytest_osgates.image.elf import MalformedElf, parse_elf
    from pytest_osgates.image.rootfs import open_root
    from pytest_osgates.image.tree import FileKind
    from pytest_osgates.image.walk import walk

    theirs = ours = 0.0
    count = differing = 0
    wanted = frozenset({b"socket", b"connect", b"getaddrinfo"})
    with open_root(image) as view:
        for node in walk(view):
            name = node.path.rpartition("/")[2]
            if node.inode.kind is not FileKind.FILE or not (node.inode.mode & 0o111 or ".so" in name):
                continue
            contents = FileContents(node.filesystem, node.inode, node.path)
            if contents.size < 64 or contents.read_at(0, 4) != b"\x7fELF":
                continue
            raw = b"".join(contents.chunks())
            begun = time.perf_counter()
            try:
                found = parse_elf(contents, wanted)
            except MalformedElf:
                continue
            ours += time.perf_counter() - begun
            begun = time.perf_counter()
            needed, imports = [], set()
            for segment in ELFFile(io.BytesIO(raw)).iter_segments("PT_DYNAMIC"):
                needed = [tag.needed for tag in segment.iter_tags("DT_NEEDED")]
                undefined = (symbol for symbol in segment.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF")
                imports = {symbol.name for symbol in undefined} & {name.decode() for name in wanted}
            theirs += time.perf_counter() - begun
            count += 1
            differing += imports != found.imports or tuple(needed) != found.needed
    print(
        f"pyelftools     {theirs:6.2f} s   ours {ours:6.2f} s   ratio {ours / theirs:.3f}   "
        f"{count} ELF files, {differing} told otherwise"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/usr"))
    parser.add_argument("--files", type=int, default=75_000)
    parser.add_argument("--megabytes", type=int, default=2600, help="uncompressed (default: 2600)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pyelftools", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="osgates-bench-") as scratch:
        image = options.image
        if image is None:
            where = options.keep or Path(scratch)
            where.mkdir(parents=True, exist_ok=True)
            image = where / f"scan-{options.files}-{options.megabytes}.iso"
            if not image.exists():
                make_image(image, options.root, options.files, options.megabytes)
        floors, own = [], []
        for _ in range(options.rounds):
            floors.append(run(FLOOR, image))
            own.append(run(OURS, image))
        floor, ours = (min(ran, key=lambda entry: entry.cpu) for ran in (floors, own))
        memory = max(entry.memory for entry in own)
        files, size = (int(word) for word in floor.output.split())
        # One thread and no waiting: on a machine with nothing else to do, processor time is what it takes.
        verdict = "ok" if ours.cpu <= SECONDS and memory <= MEGABYTES else "TOO MUCH"
        print(f"{image.stat().st_size / 1e6:.0f} MB, {files} names, {size / 1e6:.0f} MB of programs and libraries")
        print("files, ELF programs, scripts, libraries, entries, unreadable:", ours.output)
        print(
            f"floor {floor.wall:6.2f} s ({floor.cpu:5.2f} cpu)   ours {ours.wall:6.2f} s ({ours.cpu:5.2f} cpu)   "
            f"ratio {ours.cpu / floor.cpu:4.2f} of processor time, {ours.wall / floor.wall:4.2f} of wall   "
            f"{memory:4.0f} MB   (at most {SECONDS:.0f} s of processor time, {MEGABYTES} MB)  {verdict}"
        )
        if options.pyelftools:
            pyelftools(image)


if __name__ == "__main__":
    main()
