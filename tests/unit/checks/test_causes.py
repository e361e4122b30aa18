"""Causes: each has a fingerprint that fits what it is for, and the groups say it in the order of what to mend
first."""

from __future__ import annotations

import pytest
from gate_samples import difference as d

from pytest_osgates.checks.causes import (
    FOLLOWS,
    UNEXPLAINED,
    attribute,
    cause_of,
    causes,
    group,
    shown_delta,
    summary,
)
from pytest_osgates.checks.divergence import Difference

UUIDS = {"a": "8a3f1f6e-4b0c-4c3e-9d6a-0f6a5f2b7c1d", "b": "1c2d3e4f-0011-4223-8445-566778899aab"}
DAYS = {"a": "built 2026-01-01", "b": "built 2026-01-02"}

# A difference for each cause, by its id.
SAMPLES: dict[str, Difference] = {
    "machine-id": d("/etc/machine-id"),
    "nvme-hostid": d("/etc/nvme/hostid", **UUIDS),
    "host-keys": d("/etc/ssh/ssh_host_ed25519_key.pub"),
    "random-seed": d("/var/lib/systemd/random-seed"),
    "shadow-days": d("/etc/shadow", locus="line 1", a="root:*:20000::", b="root:*:20001::"),
    "uuid": d("/etc/fstab", locus="line 3", **UUIDS),
    "dkms-log": d("/var/lib/dkms/v4l2/0.12/6.12/x86_64/log/make.log", **DAYS),
    "apt-cache": d("/var/cache/apt/srcpkgcache.bin"),
    "apt-lists": d("/var/lib/apt/lists/deb.example_InRelease"),
    "ldconfig-aux-cache": d("/var/cache/ldconfig/aux-cache"),
    "fontconfig-cache": d("/var/cache/fontconfig/abc-le64.cache-7"),
    "man-db": d("/var/cache/man/index.db"),
    "logs": d("/var/log/dpkg.log", **DAYS),
    "dpkg-old": d("/var/lib/dpkg/status-old"),
    "rpm-database": d("/usr/lib/sysimage/rpm/rpmdb.sqlite", kind="SQLite", locus="SQLite page 2"),
    "desktop-caches": d("/usr/share/icons/hicolor/icon-theme.cache"),
    "hwdb": d("/usr/lib/udev/hwdb.bin"),
    "aide": d("/var/lib/aide/aide.db"),
    "java-keystore": d("/etc/ssl/certs/java/cacerts"),
    "pyc": d("/usr/lib/x.pyc", kind="pyc", locus="pyc header: source mtime"),
    "pyc-code": d("/usr/lib/x.pyc", kind="pyc", locus="pyc code"),
    "gzip-mtime": d("/usr/share/doc/x.gz", kind="gzip", locus="gzip header: mtime"),
    "archive-stamps": d("/usr/lib/x.a", kind="ar", locus="ar member x.o: mtime"),
    "build-id": d("/usr/bin/x", kind="ELF", locus="ELF build id"),
    "build-path": d("/usr/lib/x.conf", locus="line 1", a="dir=/build/a.x1", b="dir=/build/b.y2"),
    "line-order": d("/etc/list", kind="text", locus="same lines in another order"),
    "picture-metadata": d("/a.png", kind="PNG", locus="PNG chunk tIME"),
    "sqlite": d("/usr/share/x.db", kind="SQLite", locus="SQLite page 9"),
    "ext4-image": d("/LiveOS/rootfs.img", kind="ext4", locus="ext4 superblock: UUID"),
    "erofs-image": d("/LiveOS/squashfs.img", kind="EROFS", locus="EROFS superblock: build time"),
    "initrd-stamps": d("/init", "mtime", layer="cpio", delta=964),
    "initrd-inodes": d("/init", "inode", layer="cpio"),
    "initrd-order": d("archive", "order of members", layer="cpio"),
    "capabilities": d("/usr/bin/ping", "xattr security.capability", a="0100", b="none"),
    "xattrs": d("/etc", "xattr security.selinux", a="one", b="two"),
    "owners": d("/var/lib/x", "owner", a="101", b="102"),
    "modes": d("/etc/x", "mode", a="0644", b="0664"),
    "mtime-tree": d("/etc/x", "mtime", delta=964),
    "mkfs-time": d("superblock", "creation time", delta=964),
    "squashfs-options": d("superblock", "compression", a="xz", b="zstd"),
    "file-order": d("data blocks", "order of files"),
    "recompressed": d("data blocks", "compressed bytes", kind="recompressed"),
    "hard-links": d("/b", "hard link"),
    "iso-volume-dates": d("primary volume descriptor", "effective date", layer="volume descriptor", delta=1),
    "boot-catalog-date": d("/boot.catalog", "TF modification (flags 0x0e)", layer="Rock Ridge", delta=964),
    "iso-commit-stamps": d("/live/x", "TF access (flags 0x0e)", layer="Rock Ridge", delta=964),
    "iso-file-dates": d("/live/filesystem.squashfs", "recording date", layer="directory record", delta=964),
    "iso-tool-version": d("primary volume descriptor", "data preparer", layer="volume descriptor"),
    "implanted-md5": d("primary volume descriptor", "application use", layer="volume descriptor"),
    "volume-id": d("primary volume descriptor", "volume identifier", layer="volume descriptor"),
    "mbr-id": d("MBR", "disk signature", layer="MBR"),
    "gpt-guids": d("backup GPT, partition 2", "partition GUID", layer="GPT"),
    "boot-info-table": d("/isolinux/isolinux.bin", kind="El Torito boot image", layer="file"),
    "fat-serial": d("boot sector", "volume serial number", layer="FAT"),
    "fat-times": d("/EFI/BOOT", "creation time", layer="FAT", delta=964),
    "pe-stamp": d("PE header", "time stamp", layer="PE section", delta=1),
    "pe-signature": d("certificates", kind="signature", layer="PE section"),
    "checksum-files": d("/md5sum.txt", layer="file"),
    "kernel-stamp": d("/boot/x", locus="bytes", a="#1 SMP Sat Nov 1", b="#1 SMP Sun Nov 2"),
    "host-name": d("/etc/hostname", locus="line 1", a="one", b="two"),
    "date-in-text": d("/etc/issue", locus="line 1", **DAYS),
    "elf": d("/usr/bin/x", kind="ELF", locus="ELF section .text"),
    "other-files": d("/usr/bin/x", "only in A"),
}


def test_every_cause_has_a_sample() -> None:
    assert set(SAMPLES) == {cause.id for cause in causes()}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_has_its_cause(name: str) -> None:
    assert cause_of(SAMPLES[name]) == name


@pytest.mark.parametrize(
    ("difference", "cause"),
    [
        (d("/opt/x", kind="data", locus="bytes", a="00", b="01"), ""),
        (d("/etc/x", locus="line 1", a="on 2026-01-01: one", b="on 2026-01-01: two"), ""),
        (d("image", "size", layer="image", follows=True), FOLLOWS),
        (d("after x", "bytes of no structure", layer="unexplained"), UNEXPLAINED),
        (d("/etc/machine-id", "mtime", delta=964), "mtime-tree"),
        (d("/var/log/x", "mode", a="0644", b="0600"), "modes"),
        (d("/live/x", "recording date", layer="directory record", delta=None), ""),
    ],
)
def test_what_has_no_cause_or_another(difference: Difference, cause: str) -> None:
    """A date that both lines share is not why they differ."""
    assert cause_of(difference) == cause


def test_a_fix_that_costs_something_says_so() -> None:
    (made,) = group(attribute([SAMPLES["capabilities"]]))
    assert "-no-xattrs" in made.cost
    assert "file capabilities" in made.cost


def test_groups_are_in_the_order_of_what_to_mend() -> None:
    stamps = [d(f"/f{n}", "mtime", delta=964) for n in range(650)]
    found = group(attribute([*stamps, d("image", "size", layer="image", follows=True), SAMPLES["machine-id"]]))
    assert [entry.cause for entry in found] == ["machine-id", "mtime-tree", FOLLOWS]
    assert found[1].summary == "650 nodes, mtime only, all +16 min 04 s"
    assert (found[1].count, found[1].paths, len(found[1].examples)) == (650, 650, 8)


def test_a_size_has_the_cause_of_the_contents() -> None:
    found = attribute([d("/etc/machine-id", "size", a="1", b="2"), d("/etc/machine-id")])
    assert [entry.cause for entry in found] == ["machine-id", "machine-id"]
    outer = d("/live/filesystem.squashfs", "size", layer="directory record", container="")
    assert attribute([outer, d("/etc/machine-id")])[0].cause == FOLLOWS


def test_where_all_only_follows_each_stands_for_itself() -> None:
    (only,) = attribute([d("MBR", "place of the boot loader", layer="MBR", follows=True)])
    assert (only.follows, only.cause) == (False, "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(964, "+16 min 04 s"), (-5, "-5 s"), (7200, "+2 h 00 min"), (-90_000, "-1 d 01 h"), (0, "+0 s")],
)
def test_spans_of_time(seconds: int, text: str) -> None:
    assert shown_delta(seconds) == text


def test_a_summary_of_several_fields() -> None:
    assert summary([d("/a", "mode"), d("/b", "owner"), d("/b", "mode")]) == "2 nodes, mode, owner"
    assert (
        summary([d("/a", "mtime", delta=1), d("/b", "mtime", delta=90)]) == "2 nodes, mtime only, +1 s to +1 min 30 s"
    )
