"""What is accepted as what boots is no system."""

from __future__ import annotations

import pytest
from gate_samples import keys
from luks_samples import ESP, LUKS_POLICY, boot_files, file, files, installed, plain, policy

from pytest_osgates.checks import luks
from pytest_osgates.checks.luks_model import PlainPartition
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict

DECISIVE = (Severity.VIOLATION, Severity.UNPROVEN)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow", "/@/etc/passwd", "/usr/bin/sh", "/old/usr/sbin/init", "/home/me/letter.txt", "/HOME/me/x",
        "/var/lib/dpkg/status", "/var/log/messages", "/me/.ssh/id_ed25519", "/me/.bash_history",
    ],
)  # fmt: skip
def test_no_acceptance_lets_a_system_lie_open(path: str) -> None:
    looked = PlainPartition(type="linux", holds="ext4", reason="/boot")
    unlooked = looked.model_copy(update={"boots": False})
    for entry, changes in (
        (looked, {"boot": boot_files(**files(file(path)))}),
        (unlooked, {"system": (path,)}),
    ):
        seen = installed(plain("ext4", **changes))
        found = judge(luks.GATE, seen, policy(accept_plaintext=(ESP, entry)))
        assert keys(found.findings, *DECISIVE) == [("plain-system", "partition 3")]
        assert found.verdict is Verdict.FAIL
        # What nobody accepts is one finding, not two.
        assert keys(judge(luks.GATE, seen, LUKS_POLICY).findings, *DECISIVE) == [
            ("plaintext-partition", "partition 3")
        ]


def test_what_boots_is_no_system() -> None:
    ordinary = [
        "/vmlinuz-6.1.0", "/config-6.1.0", "/grub/grubenv", "/grub/x86_64-efi/normal.mod", "/loader/entries/a.conf",
        "/EFI/BOOT/BOOTX64.EFI", "/lost+found/x", "/ostree/fedora-1/vmlinuz", "/home", "/etc/passwords", "/usr/bin",
    ]  # fmt: skip
    seen = installed(plain("ext4", boot=boot_files(**files(*map(file, ordinary), file("/etc/passwd", "/initrd")))))
    entry = PlainPartition(type="linux", holds="ext4", reason="/boot")
    assert judge(luks.GATE, seen, policy(accept_plaintext=(ESP, entry))).verdict is Verdict.PASS


def test_a_root_that_is_said_to_be_one_has_no_users() -> None:
    entry = PlainPartition(type="root-x86-64", holds="ext4", reason="dm-verity", boots=False)
    for path, verdict in (("/usr/bin/sh", Verdict.PASS), ("/etc/shadow", Verdict.PASS), ("/home/a/b", Verdict.FAIL)):
        root = plain("ext4", "root-x86-64", boot=boot_files(**files(file(path))))
        assert judge(luks.GATE, installed(root), policy(accept_plaintext=(ESP, entry))).verdict is verdict


def test_names_that_could_not_be_read_are_said() -> None:
    entry = PlainPartition(type="linux", holds="ext4", reason="data", boots=False)
    found = judge(luks.GATE, installed(plain("ext4", error="damaged")), policy(accept_plaintext=(ESP, entry)))
    assert ("system-unseen", "partition 3") in keys(found.findings, Severity.REMARK)
    assert found.verdict is Verdict.PASS
