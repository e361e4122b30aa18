"""What a line of a boot configuration says of keys."""

from __future__ import annotations

import pytest
from gate_samples import keys
from luks_samples import LUKS_POLICY, with_boot

from pytest_osgates.checks import luks
from pytest_osgates.checks.luks_partitions import words_of_keys
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict


def test_words_that_name_keys() -> None:
    for word in ("rd.luks.key=/k", "luks.key=a=/k", "cryptkey=UUID=1:ext4:/k", "crypt-keyfile=/k"):
        assert words_of_keys(f"linux /vmlinuz quiet '{word}' ro") == [word]
    for word in ("rd.luks.uuid=1", "key=1", "rd.luks.key", "rd.luks.key=", "cryptkeys=1", "cryptomount -u 1"):
        assert words_of_keys(word) == []
    for line in ("-u 1 -k /key", "-p secret -u 1", "--key-file=/k -a", "--password x -a", "-k/key -a"):
        assert words_of_keys(f"\tif cryptomount {line} ; then") == ["cryptomount with a key"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('set extra="rd.luks.key=/k"', "rd.luks.key=/k"),
        ("kernelopts=rd.luks.key=/k root=/dev/x", "rd.luks.key=/k"),
        ('set x="quiet cryptkey=rootfs:/x"', "cryptkey=rootfs:/x"),
        ("a=systemd.set_credential=cryptsetup.passphrase:x", "systemd.set_credential=cryptsetup.passphrase:x"),
        ("menuentry x {linux /v rd.luks.key=/k;}", "rd.luks.key=/k"),
        ("menuentry x {rd.luks.key=/k}", "rd.luks.key=/k"),
        ("linux /v rd.luks.k\\ey=/k", "rd.luks.key=/k"),
        ("linux /v rd.luks.options={1}=header=/h", "rd.luks.options={1}=header=/h"),
        *((line, "cryptomount with a key") for line in (
            "insmod luks2;cryptomount -u 1 -k /k", "{cryptomount -p x;}", 'set x="cryptomount -p x"',
            "cryptomount -ak /k", 'cryptomount -u "1;2" -k /k', "cryptomount -a;cryptomount -k /k",
        )),
        ("cryptomount -u 1 $o", "cryptomount, and it is not known with what: $o"),
        ("cryptomount -u $o", "cryptomount, and it is not known with what: $o"),
        ("cryptomount -u 1 ${o}", "cryptomount, and it is not known with what: ${o}"),
        ("cryptomount -a; cryptomount $o", "cryptomount, and it is not known with what: $o"),
        ("cryptomount -H /h -u 1", "cryptomount, and it is not known with what: -H"),
        ("cryptomount --protector=tpm2 -a", "cryptomount, and it is not known with what: --protector=tpm2"),
        ("set x=cryptomount", "cryptomount, and it is not known with what: a variable is set to it"),
    ],
)  # fmt: skip
def test_words_that_name_keys_wherever_they_stand(line: str, word: str) -> None:
    assert words_of_keys(line) == [word]


def test_what_grub_mkconfig_writes_names_no_keys() -> None:
    for text in (
        "cryptomount -u 5f1cdd1a4bcf4b5c9f3c2a1b0c9d8e7f",
        "cryptomount -a",
        "cryptomount --uuid 1 -b",
        "cryptomount (hd0,2)",
        "  if cryptomount -u 1 ; then search --no-floppy --fs-uuid --set=root 2; fi",
        "insmod cryptodisk",
        "font=$prefix/unicode.pf2",
        "linux /vmlinuz-6.1.0 root=UUID=1 ro cryptdevice=UUID=1:root rd.luks.name=1=root quiet $vt_handoff",
        "linux /vmlinuz rd.luks.key=; initrd /initrd",
    ):
        assert words_of_keys(text) == []  # fmt: skip


def test_a_key_that_nobody_can_tell_is_not_proven() -> None:
    seen = with_boot(words=(("/grub.cfg", words_of_keys("cryptomount $o")[0]),))
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert keys(found.findings, Severity.UNPROVEN) == [("parameter-key", "/grub.cfg")]
    assert found.verdict is Verdict.NOT_PROVEN
