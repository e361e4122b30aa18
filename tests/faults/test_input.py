"""What is given as an ISO, or as the place of the evidence. Nothing is booted: what is wrong is said before that."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pytest_osgates.image.iso9660 import SECTOR, IsoImage
from pytest_osgates.image.squashfs import Squashfs
from pytest_osgates.vm.process import run
from tests.e2e.conftest import Outcome

from .table import REFUSED, Fault, check, proves
from .warm import POWERLESS, Place, read_only, small_disk

NAMED = ("--iso-distro", "bench.toml")
SQUASHFS = "/live/filesystem.squashfs"


def given(contents: bytes) -> Callable[[Place], Outcome]:
    """A file of these bytes for an ISO."""

    def make(place: Place) -> Outcome:
        place.iso.write_bytes(contents)
        return place.judge()

    return make


def instead(make: Callable[[Path], object]) -> Callable[[Place], Outcome]:
    """Something else at the path of the ISO."""

    def run_it(place: Place) -> Outcome:
        place.iso.unlink()
        make(place.iso)
        return place.judge()

    return run_it


def options(*arguments: str) -> Callable[[Place], Outcome]:
    """Other options."""
    return lambda place: place.run(*arguments)


def called(name: str) -> Callable[[Place], Outcome]:
    """The ISO under another name, which is where its evidence is beside."""

    def make(place: Place) -> Outcome:
        path = place.path / name
        path.parent.mkdir(exist_ok=True)
        place.iso.rename(path)
        return place.run("--iso", str(path.relative_to(place.path)), *NAMED)

    return make


def flipped(find: Callable[[IsoImage], int], *, named: bool = True) -> Callable[[Place], Outcome]:
    """All bits of one byte, which `find` finds. `named`: with the name of the profile, without looking inside."""

    def make(place: Place) -> Outcome:
        image = bytearray(place.iso.read_bytes())
        with IsoImage.open(place.iso) as iso:
            at = find(iso)
        image[at] ^= 0xFF
        place.iso.write_bytes(image)
        outcome = place.judge() if named else place.run("--iso", "test.iso")
        if outcome.verdicts:
            assert outcome.verdicts["image"]["sha256"] == hashlib.sha256(image).hexdigest()
        return outcome

    return make


def record_of(path: str, offset: int) -> Callable[[IsoImage], int]:
    """A byte of the directory record of `path`."""

    def find(iso: IsoImage) -> int:
        file = iso.lookup(path)
        assert file is not None
        return file.record.offset + offset

    return find


def path_table(iso: IsoImage) -> int:
    """The first byte of the second entry of the little-endian path table (ECMA-119, 8.4.16): a name's length."""
    return int.from_bytes(iso.source.read_at(iso.volume.offset + 140, 4), "little") * SECTOR + 10


def of(signature: bytes, offset: int, path: str = "/live") -> Callable[[IsoImage], int]:
    """A byte of the Rock Ridge entry `signature` of the file at `path`."""

    def find(iso: IsoImage) -> int:
        file = iso.lookup(path)
        assert file is not None
        record = iso.source.read_at(file.record.offset, file.record.size)
        return file.record.offset + record.index(signature) + offset

    return find


def boot_catalog(offset: int) -> Callable[[IsoImage], int]:
    """A byte of the boot catalog."""
    return lambda iso: int.from_bytes(iso.source.read_at(17 * SECTOR + 71, 4), "little") * SECTOR + offset


def table(name: str, offset: int = 2) -> Callable[[IsoImage], int]:
    """A byte of a table of the squashfs, the first one (zlib's CMF) of its first block; or of its superblock."""

    def find(iso: IsoImage) -> int:
        file = iso.lookup(SQUASHFS)
        assert file is not None
        start = file.extents[0].offset
        at = 0 if name == "superblock" else getattr(Squashfs(iso.source, start, file.size).superblock, name)
        return start + int(at) + offset

    return find


def first_data(iso: IsoImage) -> int:
    """The first byte of contents in the squashfs, which is in its only fragment."""
    file = iso.lookup(SQUASHFS)
    assert file is not None
    return file.extents[0].offset + 96 + 4


def rebuilt(change: Callable[[Path], None], *, boots: bool = True) -> Callable[[Place], Outcome]:
    """An ISO of other files."""

    def make(place: Place) -> Outcome:
        tree = place.path / "tree"
        tree.mkdir()
        (tree / "boot.img").write_bytes(bytes(2048))
        change(tree)
        boot = ("-b", "boot.img", "-no-emul-boot") if boots else ()
        place.iso.unlink()
        command = ("xorriso", "-as", "mkisofs", "-quiet", "-R", *boot, "-o", str(place.iso), str(tree))
        run(list(command), timeout=60)
        return place.run("--iso", "test.iso", *(() if boots else NAMED))

    return make


def with_root(files: dict[str, str]) -> Callable[[Path], None]:
    """A live system whose root holds these files."""

    def change(tree: Path) -> None:
        root = tree.parent / "root"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (tree / "live").mkdir()
        pack = ["mksquashfs", str(root), str(tree / SQUASHFS[1:]), "-quiet", "-no-progress", "-all-root"]
        # No times of now: what a flipped byte leads to is the same in every run.
        run([*pack, "-mkfs-time", "1", "-all-time", "1", "-processors", "1", "-mem", "64M"], timeout=60)

    return change


WHILE_READ = """
import os
read, done = os.readv, []
def readv(descriptor, buffers):
    count = read(descriptor, buffers)
    if not done:
        done.append(1)
        {what}
    return count
os.readv = readv
"""


def while_read(what: str) -> Callable[[Place], Outcome]:
    """Something happens to the file after the first block of it was hashed."""
    return lambda place: place.judge(inside=WHILE_READ.format(what=what))


def after(what: str) -> Callable[[Place], Outcome]:
    """Something happens to the file once the gates run."""

    def make(place: Place) -> Outcome:
        place.tests(f"import os\n\ndef change(case, seen):\n    {what}\n    return seen\n")
        return place.judge()

    return make


def powerless(what: Callable[[Place], object], *arguments: str) -> Callable[[Place], Outcome]:
    """Without root's power over files."""

    def make(place: Place) -> Outcome:
        what(place)
        try:
            return place.judge(*arguments, inside=POWERLESS)
        finally:
            for path in place.path.iterdir():
                if not path.is_symlink():
                    path.chmod(0o755)

    return make


def locked(place: Place) -> None:
    (place.path / "locked").mkdir()
    place.iso.rename(place.path / "locked" / "test.iso")
    place.iso.symlink_to("locked/test.iso")
    (place.path / "locked").chmod(0)


def disk(fill: Callable[[str], str], folder: str) -> Callable[[Place], Outcome]:
    """The run sees `folder` on another file system."""

    def make(place: Place) -> Outcome:
        (place.path / folder).mkdir(exist_ok=True)
        if folder == "shelf":
            place.iso.rename(place.path / folder / "test.iso")
            place.iso.symlink_to(f"{folder}/test.iso")
        return place.judge(inside=fill(str(place.path / folder)))

    return make


def bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def half(place: Place) -> Outcome:
    whole = place.iso.read_bytes()
    place.iso.write_bytes(whole[: len(whole) // 2])
    return place.judge()


def last_sector(place: Place) -> Outcome:
    with IsoImage.open(place.iso) as iso:
        size = iso.volume.size
    os.truncate(place.iso, size - 1)
    return place.judge()


def zipped(place: Place) -> Outcome:
    place.iso.write_bytes(gzip.compress(place.iso.read_bytes(), 1))
    return place.judge()


def data_iso(tree: Path) -> None:
    (tree / "README").write_text("No system here.\n")


MAKERS: dict[str, Callable[[Place], Outcome]] = {
    "no such file": options("--iso", "none.iso", *NAMED),
    "no name": options("--iso", "", *NAMED),
    "no profile's name": options("--iso", "test.iso", "--iso-distro", ""),
    "two": options("--iso", "test.iso", "--iso", "other.iso", *NAMED),
    "a name that hides": options("--iso", "x\x1b[2J\u202e.iso", *NAMED),
    "a name too long": options("--iso", "x" * 300 + ".iso", *NAMED),
    "a directory": options("--iso", ".", *NAMED),
    "a device": options("--iso", "/dev/zero", *NAMED),
    "a pipe": instead(os.mkfifo),
    "a socket": instead(bind),
    "a broken link": instead(lambda path: path.symlink_to("gone.iso")),
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    "empty": given(b""),
    "zeros": given(bytes(100_000)),
    "text": given(b"This is no ISO.\n" * 5000),
    "a page": given(b"<!DOCTYPE html><title>404 Not Found</title>" * 100),
    "checksums": given(b"0" * 64 + b"  test.iso\n"),
    "random bytes": given(hashlib.shake_128(b"noise").digest(200_000)),
    "packed": zipped,
    "a disk image": given(b"QFI\xfb" + bytes(100_000)),
    "half": half,
    "all but the last byte": last_sector,
    "unreadable": powerless(lambda place: place.iso.chmod(0)),
    "in a locked directory": powerless(locked),
    "grows while it is hashed": while_read("os.write(os.open('test.iso', os.O_WRONLY | os.O_APPEND), b'more')"),
    "shrinks while it is hashed": while_read("os.truncate('test.iso', 70000)"),
    "replaced while it is hashed": while_read("os.rename('test_rows.py', 'test.iso')"),
    "written to after it was hashed": after("os.utime('test.iso', ns=(1, 1))"),
    "gone after it was hashed": after("os.path.exists('test.iso') and os.remove('test.iso')"),
    "spaces and a newline": called("dist dir/a b\nLAUNCH: READY\n'$x.iso"),
    "not UTF-8": called(os.fsdecode(b"caf\xe9.iso")),
    "data only": rebuilt(data_iso, boots=False),
    "no live system": rebuilt(data_iso),
    "no os-release": rebuilt(with_root({"etc/hostname": "x\n"})),
    "an unknown distribution": rebuilt(with_root({"etc/os-release": "ID=nobody-knows\n"})),
    "an empty os-release": rebuilt(with_root({"etc/os-release": ""})),
    "flip: volume descriptor": flipped(lambda iso: iso.volume.offset + 1),
    "flip: volume size": flipped(lambda iso: iso.volume.offset + 83),
    "flip: block size": flipped(lambda iso: iso.volume.offset + 128),
    "flip: root directory": flipped(lambda iso: iso.volume.offset + 156 + 2),
    "flip: boot record": flipped(lambda iso: 17 * SECTOR + 7),
    "flip: boot catalog": flipped(boot_catalog(4)),
    "flip: boot entry": flipped(boot_catalog(32)),
    "flip: boot image": flipped(boot_catalog(32 + 11)),
    "flip: directory record": flipped(record_of("/boot.img", 0)),
    "flip: position of a file": flipped(record_of(SQUASHFS, 4)),
    "flip: Rock Ridge signature": flipped(lambda iso: iso.root.extents[0].offset + 34 + 4, named=False),
    "flip: Rock Ridge name": flipped(of(b"NM", 5), named=False),
    "flip: Rock Ridge mode": flipped(of(b"PX", 5), named=False),
    "flip: path table": flipped(path_table),
    "flip: squashfs superblock": flipped(table("superblock", 0), named=False),
    "flip: squashfs version": flipped(table("superblock", 28), named=False),
    "flip: squashfs inodes": flipped(table("inode_table"), named=False),
    "flip: squashfs directories": flipped(table("directory_table"), named=False),
    "flip: squashfs fragments": flipped(table("fragment_table", 7), named=False),
    "flip: squashfs contents": flipped(first_data, named=False),
    "evidence in a file": options("--iso", "test.iso", *NAMED, "--iso-evidence", "bench.toml"),
    "evidence where nothing may be written": powerless(
        lambda place: (place.path / "shut").mkdir(0o555), "--iso-evidence", "shut"
    ),
    "evidence on a read-only disk": disk(read_only, "osgates-evidence"),
    "evidence on a full disk": disk(lambda folder: small_disk(folder, 4), "osgates-evidence"),
    "on a read-only disk": disk(read_only, "shelf"),
    "no such disk": options("--iso", "test.iso", *NAMED, "--iso-disk", "none.qcow2"),
    "no such tool": options("--iso", "test.iso", *NAMED, "--iso-tool", "checker"),
}


@proves(*MAKERS)
def test_input(fault: Fault, place: Place) -> None:
    outcome = MAKERS[fault.name](place)
    check(fault, outcome)
    if fault.verdict == REFUSED:
        assert "\n  -> " in outcome.output, "it does not say what to do"
        assert not list(place.path.glob("osgates-evidence/*/*/*")), "something was written"
