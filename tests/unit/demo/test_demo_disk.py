"""What the demo's disk is made of, as far as no disk has to be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_osgates.checks.registry import GATES
from pytest_osgates.cli import main
from pytest_osgates.demo.disk import build_demo_disk, known_bytes, tpm_token
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.image.diff.cpio import archives, members
from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.disk.contents import looks_random
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.vm.errors import UsageError


def test_variants_are_named_once_and_expect_rules_of_the_gate() -> None:
    names = variant_names()
    assert len(set(names)) == len(names) >= 12
    source = "".join(path.read_text() for path in Path(__file__).parents[3].glob("pytest_osgates/checks/luks*.py"))
    for variant in map(load_disk_file().named, names):
        assert variant.expects.gate in GATES
        assert variant.expects.verdict == "FAIL"
        # Rules of one kind are made from a word: keyslot-memory, keyslot-time.
        rule = variant.expects.rule
        assert f'"{rule}"' in source or f'("{rule.rpartition("-")[2]}"' in source, rule


def test_the_appended_archive_is_one() -> None:
    for before in (b"", b"x", b"1234567"):
        made = appended_archive(
            len(before), {"a/b/key": (0o600, b"secret"), "crypttab": (0o644, b"root x /a/b/key\n")}
        )
        found = archives(BytesContent(bytes(len(before)) + made), to_end=True)
        entries = [(member.name, member.numbers[1], data) for member, data in members(found[0], 1000)]
        assert entries == [
            ("a", 0o40755, b""),
            ("a/b", 0o40755, b""),
            ("a/b/key", 0o100600, b"secret"),
            ("crypttab", 0o100644, b"root x /a/b/key\n"),
        ]


def test_known_bytes_look_like_a_key_and_are_no_secret() -> None:
    assert looks_random(known_bytes("EFI/BOOT/fonts.dat"))
    assert known_bytes("a") == known_bytes("a") != known_bytes("b")
    assert tpm_token((7,), 2)["keyslots"] == ["2"]


def test_wrong_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no weakened disk 'x'"):
        build_demo_disk(tmp_path / "none.iso", tmp_path / "d", lambda stage, fraction: None, "x")
    assert main(["demo-disk", "--weak", "nothing"]) == 4
    assert main(["demo-disk", "-o", str(tmp_path)]) == 4
    assert main(["demo-disk", "-o", str(tmp_path / "no" / "d")]) == 4
    assert main(["demo-disk", "--list-weak"]) == 0
    assert "luks: luks1 partition 2" in capsys.readouterr().out
