"""Gate `luks`: each weakness is its own finding, and nothing that was not seen is a PASS."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from gate_samples import keys
from hypothesis import given, settings
from hypothesis import strategies as st
from luks_samples import (
    ESP,
    LUKS_POLICY,
    MIB,
    MINIMAL,
    boot_files,
    encrypted,
    esp,
    file,
    files,
    installed,
    kdf,
    keyslot,
    plain,
    policy,
    segment,
    volume,
    with_boot,
    with_volume,
)
from pydantic import ValidationError

from pytest_osgates.checks import luks
from pytest_osgates.checks.luks_model import (
    CrypttabSeen,
    FileSeen,
    GapSeen,
    Guess,
    KdfSeen,
    KeyslotSeen,
    LuksObservation,
    LuksPolicy,
    PlainKey,
    PlainPartition,
    TokenSeen,
)
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict

RECOVERY = TokenSeen(number=0, type="systemd-recovery", keyslots=(1,))
DECISIVE = (Severity.VIOLATION, Severity.UNPROVEN)


def tpm(number: int = 1, **changes: Any) -> TokenSeen:
    fields: dict[str, Any] = {
        "number": number,
        "type": "systemd-tpm2",
        "keyslots": (2,),
        "pcrs": (7,),
        "bank": "sha256",
    }
    return TokenSeen(**{**fields, **changes})


def with_tpm(**changes: Any) -> LuksObservation:
    slots = (keyslot(), keyslot(1, MINIMAL), keyslot(2, MINIMAL))
    return with_volume(keyslots=slots, tokens=(RECOVERY, tpm(**changes)))


def line(key: str, options: str = "luks") -> dict[str, Any]:
    entry = CrypttabSeen(
        container="/initrd", path="/etc/crypttab", name="root", device="UUID=1", key=key, options=options
    )
    return {"crypttab": (entry,)}


def test_a_sound_disk_passes() -> None:
    found = judge(luks.GATE, installed(), LUKS_POLICY)
    assert [(finding.rule, finding.severity) for finding in found.findings] == [
        ("plaintext-partition", Severity.ACCEPTED),
        ("random-key", Severity.REMARK),
    ]
    assert found.verdict is Verdict.PASS
    assert len(found.controls) >= 15
    assert all(control.caught for control in found.controls)


@pytest.mark.parametrize(
    "seen",
    [
        installed(),
        with_tpm(),
        installed(plain("empty")),
        with_volume(keyslots=(keyslot(),), tokens=()),
        installed(partitions=(encrypted(number=0, start=0),), table="none"),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tpm": "forbidden"},
        {"tpm": "required"},
        {"pcrs": ()},
        {"recovery": False},
        {"recovery_slots": (0,)},
        {"initrd": "encrypted"},
        {"refused": ()},
        {"refused": ("", "admin")},
        {"time": 1, "memory_kib": 8},
        {"ciphers": ("aes-adiantum-plain64", "aes-xts-plain64"), "key_size": 256},
    ],
)
def test_controls_are_caught_whatever_is_demanded(seen: LuksObservation, changes: dict[str, Any]) -> None:
    """But one whose finding is there already, and then the verdict is no PASS."""
    found = judge(luks.GATE, seen, policy(**changes))
    missed = [control for control in found.controls if not control.caught]
    assert all("was there before" in control.why for control in missed)
    assert not missed or found.verdict is not Verdict.PASS


def with_slot(slot: KeyslotSeen) -> LuksObservation:
    """This one for the passphrase, beside the recovery key."""
    return with_volume(keyslots=(slot, keyslot(1, MINIMAL)))


WEAK: dict[str, tuple[LuksObservation, tuple[str, str]]] = {
    "pbkdf2": (with_slot(keyslot(0, MINIMAL)), ("keyslot-kdf", "keyslot 0")),
    "argon2i": (with_slot(keyslot(0, kdf(type="argon2i"))), ("keyslot-kdf", "keyslot 0")),
    "memory": (with_slot(keyslot(0, kdf(memory=65535))), ("keyslot-memory", "keyslot 0")),
    "time": (with_slot(keyslot(0, kdf(time=3))), ("keyslot-time", "keyslot 0")),
    "slot's cipher": (
        with_volume(keyslots=(keyslot(cipher="aes-cbc-essiv:sha256"), keyslot(1, MINIMAL))),
        ("keyslot-cipher", "keyslot 0"),
    ),
    "slot's key": (with_slot(keyslot(cipher_bits=256)), ("keyslot-cipher", "keyslot 0")),
    "extra": (with_volume(keyslots=(keyslot(), keyslot(1, MINIMAL), keyslot(2))), ("extra-slot", "")),
    "no passphrase": (with_volume(keyslots=(keyslot(1, MINIMAL),)), ("no-passphrase", "")),
    "luks1": (with_volume(version=1, keyslots=(), tokens=(), segments=()), ("luks1", "")),
    "copies": (with_volume(faults=("the second copy: not there",)), ("header-copies", "")),
    "requirements": (with_volume(requirements=("online-reencrypt-v2",)), ("unfinished", "")),
    "kept aside": (with_volume(segments=(segment(), segment(name="1", in_use=False))), ("unfinished", "")),
    "linear": (with_volume(segments=(segment(type="linear", cipher=""),)), ("segment", "segment 0")),
    "cipher": (with_volume(segments=(segment(cipher="cipher_null-ecb"),)), ("cipher", "segment 0")),
    "key size": (with_volume(key_size=256), ("key-size", "")),
    "plain payload": (with_volume(segments=(segment(entropy=7.4),)), ("payload", "segment 0")),
    "a file system as payload": (with_volume(segments=(segment(holds=("squashfs",)),)), ("payload", "segment 0")),
    "spare": (with_volume(spare=(4096,)), ("spare-data", "")),
    "no recovery": (with_volume(keyslots=(keyslot(),), tokens=()), ("no-recovery", "")),
    "unknown token": (
        with_volume(tokens=(RECOVERY, TokenSeen(number=1, type="clevis", keyslots=(0,)))),
        ("unknown-token", "token 1"),
    ),
    "tpm without PCRs": (with_tpm(pcrs=()), ("tpm-pcrs", "token 1")),
    "tpm with other PCRs": (with_tpm(pcrs=(0, 11), signed_pcrs=(12,)), ("tpm-pcrs", "token 1")),
    "weak bank": (with_tpm(bank="sha1"), ("tpm-bank", "token 1")),
}  # fmt: skip


@pytest.mark.parametrize("name", WEAK)
def test_each_weakness_is_one_finding(name: str) -> None:
    seen, (rule, subject) = WEAK[name]
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert found.verdict is Verdict.FAIL
    wanted = f"partition 2, {subject}" if subject else "partition 2"
    assert keys(found.findings, *DECISIVE) == [(rule, wanted)]


def test_a_slot_that_opens_to_a_guess() -> None:
    slots = (keyslot(), keyslot(1, MINIMAL), keyslot(2))
    guesses = tuple(Guess(keyslot=number, passphrase="", opened=number == 2) for number in range(3))
    found = judge(luks.GATE, with_volume(keyslots=slots, guesses=guesses), LUKS_POLICY)
    # It is no second passphrase besides: it is one finding.
    assert keys(found.findings, *DECISIVE) == [("guessable", "partition 2, keyslot 2")]


@pytest.mark.parametrize(
    "guesses",
    [
        (),
        (Guess(keyslot=0, passphrase="", opened=False),),
        tuple(Guess(keyslot=n, passphrase="", opened=None, error="cryptsetup is not installed") for n in (0, 1)),
    ],
)
def test_what_was_not_tried_is_not_proven(guesses: tuple[Guess, ...]) -> None:
    found = judge(luks.GATE, with_volume(guesses=guesses), LUKS_POLICY)
    assert found.verdict is Verdict.NOT_PROVEN
    assert {finding.rule for finding in found.findings if finding.severity is Severity.UNPROVEN} == {"untried"}
    more = judge(luks.GATE, installed(), policy(refused=("", "factory")))
    assert more.verdict is Verdict.NOT_PROVEN


@pytest.mark.parametrize(
    "tokens",
    [
        # It claims the passphrase as well.
        (TokenSeen(number=0, type="systemd-recovery", keyslots=(0, 1)),),
        # Two of them claim one slot.
        (RECOVERY, TokenSeen(number=1, type="systemd-recovery", keyslots=(0,)),
         TokenSeen(number=2, type="systemd-tpm2", keyslots=(0,), pcrs=(7,), bank="sha256")),
        # One that only says where a passphrase may be, and is not named by the profile.
        (RECOVERY, TokenSeen(number=1, type="luks2-keyring", keyslots=(0,))),
    ],
)  # fmt: skip
def test_a_token_is_no_excuse_for_a_weak_passphrase(tokens: tuple[TokenSeen, ...]) -> None:
    seen = with_volume(keyslots=(keyslot(0, MINIMAL), keyslot(1, MINIMAL)), tokens=tokens)
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert ("keyslot-kdf", "partition 2, keyslot 0") in keys(found.findings, Severity.VIOLATION)


def test_a_named_recovery_slot_counts_and_must_be_strong() -> None:
    named = policy(recovery_slots=(3,))
    strong = with_volume(keyslots=(keyslot(), keyslot(3)), tokens=())
    assert judge(luks.GATE, strong, named).verdict is Verdict.PASS
    assert keys(judge(luks.GATE, strong, LUKS_POLICY).findings, *DECISIVE) == [
        ("extra-slot", "partition 2"),
        ("no-recovery", "partition 2"),
    ]
    weak = with_volume(keyslots=(keyslot(), keyslot(3, MINIMAL)), tokens=())
    assert keys(judge(luks.GATE, weak, named).findings, *DECISIVE) == [("keyslot-kdf", "partition 2, keyslot 3")]
    lost = with_volume(keyslots=(keyslot(), keyslot(3, volume=False)), tokens=())
    assert keys(judge(luks.GATE, lost, named).findings, Severity.VIOLATION) == [("no-recovery", "partition 2")]


def test_a_slot_that_is_bound_to_no_segment_is_not_proven() -> None:
    """Its key may be the volume's own (cryptsetup luksAddKey --unbound --volume-key-file)."""
    slots = (keyslot(), keyslot(1, MINIMAL), keyslot(2, volume=False))
    guesses = volume().guesses
    found = judge(luks.GATE, with_volume(keyslots=slots, guesses=guesses), LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("unbound-slot", "partition 2, keyslot 2")]
    assert found.verdict is Verdict.NOT_PROVEN
    opened = (*guesses, Guess(keyslot=2, passphrase="", opened=True))
    found = judge(luks.GATE, with_volume(keyslots=slots, guesses=opened), LUKS_POLICY)
    assert keys(found.findings, Severity.VIOLATION) == [("guessable", "partition 2, keyslot 2")]
    # Nor is it somebody's passphrase.
    lost = with_volume(keyslots=(keyslot(0, volume=False), keyslot(1, MINIMAL)))
    found = judge(luks.GATE, lost, LUKS_POLICY)
    assert keys(found.findings, Severity.VIOLATION) == [("no-passphrase", "partition 2")]


def test_a_slot_that_the_tpm_opens_is_no_recovery() -> None:
    slots = (keyslot(), keyslot(2, MINIMAL))
    seen = with_volume(keyslots=slots, tokens=(tpm(),))
    found = judge(luks.GATE, seen, policy(recovery_slots=(2,)))
    assert keys(found.findings, *DECISIVE) == [("no-recovery", "partition 2")]


@pytest.mark.parametrize("changes", [{"tried": False}, {"wiped": True}])
def test_a_slot_that_nobody_can_use_does_not_count(changes: dict[str, Any]) -> None:
    for slots, rule in (
        ((keyslot(0, **changes), keyslot(1, MINIMAL)), "no-passphrase"),
        ((keyslot(), keyslot(1, MINIMAL, **changes)), "no-recovery"),
    ):
        found = judge(luks.GATE, with_volume(keyslots=slots), LUKS_POLICY)
        assert keys(found.findings, *DECISIVE) == [(rule, "partition 2")]
    # Who names its number opens the disk with it nevertheless.
    weak = (keyslot(), keyslot(1, MINIMAL), keyslot(2, kdf(memory=8), **changes))
    found = judge(luks.GATE, with_volume(keyslots=weak), LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("keyslot-memory", "partition 2, keyslot 2")]


@pytest.mark.parametrize("how", [kdf(memory=32768), KdfSeen(type="pbkdf2", iterations=1_000_000, hash="sha256")])
def test_a_stretched_key_is_a_passphrase_whatever_its_token_says(how: KdfSeen) -> None:
    seen = with_volume(keyslots=(keyslot(), keyslot(1, how)))
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert {subject for _, subject in keys(found.findings, *DECISIVE)} == {"partition 2, keyslot 1", "partition 2"}
    weak = next(finding for finding in found.findings if finding.subject == "partition 2, keyslot 1")
    # What would make it stronger leaves no recovery key: that is not what it says.
    assert "luksConvertKey" not in weak.hint
    assert "recovery_slots" in weak.hint


def test_a_recovery_key_that_became_a_passphrase_is_none() -> None:
    """cryptsetup luksChangeKey lets the token stay."""
    seen = with_volume(keyslots=(keyslot(), keyslot(1)))
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("extra-slot", "partition 2"), ("no-recovery", "partition 2")]
    assert "keyslot 1 is stretched" in found.findings[-1].seen
    assert keys(found.findings, Severity.REMARK) == [("stretched-key", "partition 2, keyslot 1")]
    assert judge(luks.GATE, seen, policy(recovery_slots=(1,))).verdict is Verdict.PASS


@pytest.mark.parametrize("how", [kdf(), KdfSeen(type="pbkdf2", iterations=1001, hash="sha256")])
def test_no_token_hides_a_passphrase(how: KdfSeen) -> None:
    slots = (keyslot(), keyslot(1, MINIMAL), keyslot(2, how))
    found = judge(luks.GATE, with_volume(keyslots=slots, tokens=(RECOVERY, tpm())), LUKS_POLICY)
    weak = ("keyslot-kdf", "partition 2, keyslot 2") if how.type == "pbkdf2" else ("extra-slot", "partition 2")
    assert keys(found.findings, *DECISIVE) == [weak]


def test_a_second_recovery_key_is_one_too_many() -> None:
    tokens = (RECOVERY, TokenSeen(number=1, type="systemd-recovery", keyslots=(2,)))
    seen = with_volume(keyslots=(keyslot(), keyslot(1, MINIMAL), keyslot(2, MINIMAL)), tokens=tokens)
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("extra-slot", "partition 2")]


def test_what_the_profile_says_of_the_tpm() -> None:
    assert judge(luks.GATE, with_tpm(), policy(tpm="required")).verdict is Verdict.PASS
    assert judge(luks.GATE, with_tpm(pcrs=(), signed_pcrs=(7,)), LUKS_POLICY).verdict is Verdict.PASS
    assert keys(judge(luks.GATE, installed(), policy(tpm="required")).findings, *DECISIVE) == [
        ("no-tpm", "partition 2")
    ]
    assert keys(judge(luks.GATE, with_tpm(), policy(tpm="forbidden")).findings, *DECISIVE) == [
        ("tpm-forbidden", "partition 2, token 1")
    ]
    unknown = judge(luks.GATE, with_tpm(pcrs=(), pcrlock=True), LUKS_POLICY)
    assert keys(unknown.findings, *DECISIVE) == [("tpm-pcrlock", "partition 2, token 1")]
    assert unknown.verdict is Verdict.NOT_PROVEN
    assert judge(luks.GATE, with_tpm(pcrs=(4, 7, 9)), policy(pcrs=(4, 7, 8))).verdict is Verdict.FAIL
    # systemd then takes what the TPM has, SHA-1 too.
    for bank in ("", "sha1", "sm3_256"):
        assert keys(judge(luks.GATE, with_tpm(bank=bank), LUKS_POLICY).findings, *DECISIVE) == [
            ("tpm-bank", "partition 2, token 1")
        ]


OPEN: dict[str, tuple[LuksObservation, tuple[str, str], Verdict]] = {
    "swap": (installed(plain("swap", "swap")), ("clear-swap", "partition 3"), Verdict.FAIL),
    "data": (installed(plain("ext4")), ("plaintext-partition", "partition 3"), Verdict.FAIL),
    "lvm": (installed(plain("LVM2_member", "lvm")), ("plaintext-partition", "partition 3"), Verdict.FAIL),
    "low entropy": (installed(plain("unknown", entropy=4.0)), ("plaintext-partition", "partition 3"), Verdict.FAIL),
    "random": (installed(plain("unknown", entropy=8.0)), ("unknown-partition", "partition 3"), Verdict.NOT_PROVEN),
    "second ESP": (
        installed(esp(number=3, boot=boot_files())), ("plaintext-partition", "partition 3"), Verdict.FAIL,
    ),
    "two signatures": (
        installed(partitions=(esp(), encrypted(also=("btrfs",)))), ("ambiguous", "partition 2"), Verdict.NOT_PROVEN,
    ),
    "broken header": (
        installed(encrypted(volume=None, number=3, error="its checksum is wrong")),
        ("header", "partition 3"), Verdict.NOT_PROVEN,
    ),
    "gap": (
        installed(gaps=(GapSeen(start=2 * MIB, size=MIB, first=2 * MIB + 9),)),
        ("unpartitioned-data", f"unpartitioned space at {2 * MIB}"), Verdict.FAIL,
    ),
    "gap before a GPT's first partition": (
        installed(gaps=(GapSeen(start=17408, size=MIB - 17408, first=20480),)),
        ("unpartitioned-data", "unpartitioned space at 17408"), Verdict.FAIL,
    ),
    "gap where no boot loader lies": (
        installed(gaps=(GapSeen(start=512, size=MIB - 512, first=4096),), table="dos"),
        ("unpartitioned-data", "unpartitioned space at 512"), Verdict.FAIL,
    ),
    "who knows what where boot loaders lie": (
        installed(gaps=(GapSeen(start=512, size=MIB - 512, first=512),), table="dos"),
        ("boot-gap", "unpartitioned space at 512"), Verdict.NOT_PROVEN,
    ),
    "file system in the gap of boot loaders": (
        installed(gaps=(GapSeen(start=512, size=MIB - 512, first=512, holds=("xfs",)),), table="dos"),
        ("unpartitioned-data", "unpartitioned space at 512"), Verdict.FAIL,
    ),
    "no initrd": (with_boot(initrds=()), ("initrd-missing", "initrd"), Verdict.NOT_PROVEN),
    "nothing but microcode": (
        with_boot(files=(
            file("/kernel/x86/microcode/AuthenticAMD.bin", "/live/initrd.img"),
            file("/early_cpio", "/live/initrd.img"), file("/init"), file("/init", "/elsewhere"),
        )),
        ("initrd-missing", "initrd"), Verdict.NOT_PROVEN,
    ),
    "unread": (
        with_boot(unread=(("/x.gz", "an archive"),)), ("not-looked-into", "partition 1: /x.gz"), Verdict.NOT_PROVEN,
    ),
    "named key": (
        with_boot(**files(file("/etc/cryptsetup-keys.d/Root.key", "/initrd"))),
        ("key-in-initrd", "/initrd!/etc/cryptsetup-keys.d/Root.key"), Verdict.FAIL,
    ),
    "random file": (with_boot(**files(file("/EFI/x.dat", random=True))), ("key-on-esp", "/EFI/x.dat"), Verdict.FAIL),
    "random seed of another size": (
        with_boot(**files(file("/loader/random-seed", random=True))),
        ("key-on-esp", "/loader/random-seed"), Verdict.FAIL,
    ),
    "random file called firmware": (
        with_boot(**files(file("/lib/firmware/x", random=True))), ("key-on-esp", "/lib/firmware/x"), Verdict.FAIL,
    ),
    "firmware that a unit names": (
        with_boot(**files(FileSeen(container="/initrd", path="/lib/firmware/x", size=64, random=True, named=True))),
        ("key-in-initrd", "/initrd!/lib/firmware/x"), Verdict.FAIL,
    ),
    "crypttab": (with_boot(**line("/keys/root")), ("crypttab-key", "/initrd!/etc/crypttab: root"), Verdict.FAIL),
    "keyscript": (
        with_boot(**line("none", "luks,keyscript=/bin/get")),
        ("keyscript", "/initrd!/etc/crypttab: root"), Verdict.NOT_PROVEN,
    ),
    "another header": (
        with_boot(**line("none", "luks,header=/header.img")),
        ("other-header", "/initrd!/etc/crypttab: root"), Verdict.NOT_PROVEN,
    ),
    "parameter": (
        with_boot(words=(("/grub.cfg", "rd.luks.key=/k"),)), ("parameter-key", "/grub.cfg"), Verdict.FAIL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN)
def test_what_lies_open_is_one_finding(name: str) -> None:
    seen, wanted, verdict = OPEN[name]
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [wanted]
    assert found.verdict is verdict


@pytest.mark.parametrize(
    "seen",
    [
        installed(plain("empty", "swap")),
        installed(gaps=(GapSeen(start=512, size=MIB - 512, first=512, grub=True),), table="dos"),
        with_boot(**files(file("/loader/random-seed", size=32, random=True))),
        with_boot(**line("none")),
        with_boot(**line("/dev/urandom", "swap,cipher=aes-xts-plain64")),
        with_boot(**files(file("/keys/keyboard", "/initrd"))),
        with_boot(**files(file("/usr/lib/firmware/a_sig.bin", "/initrd", random=True))),
        with_boot(**files(file("/kernel/x86/microcode/GenuineIntel.bin", "/initrd", random=True))),
    ],
)
def test_what_says_nothing_against_it(seen: LuksObservation) -> None:
    assert judge(luks.GATE, seen, LUKS_POLICY).verdict is Verdict.PASS


def test_a_line_that_names_an_accepted_file_says_that_it_is_a_key() -> None:
    accepted = PlainKey(path="/initrd!/etc/noise", reason="a seed")
    key = file("/etc/noise", "/initrd", random=True)
    assert judge(luks.GATE, with_boot(**files(key)), policy(accept_keys=(accepted,))).verdict is Verdict.PASS
    found = judge(luks.GATE, with_boot(**files(key), **line("/etc/noise")), policy(accept_keys=(accepted,)))
    assert keys(found.findings, *DECISIVE) == [("crypttab-key", "/initrd!/etc/crypttab: root")]


def test_a_key_file_and_the_line_that_names_it_are_one_finding() -> None:
    seen = with_boot(**files(file("/keys/root.key", "/initrd", random=True)), **line("/keys/root.key"))
    found = judge(luks.GATE, seen, LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("key-in-initrd", "/initrd!/keys/root.key")]


def test_a_disk_without_luks_fails_and_without_partitions_too() -> None:
    for seen in (installed(partitions=(esp(),)), installed(partitions=()), installed(partitions=(plain("empty"),))):
        found = judge(luks.GATE, seen, LUKS_POLICY)
        assert found.verdict is Verdict.FAIL
        assert ("no-encryption", "disk") in keys(found.findings)


def test_an_empty_volume_proves_nothing() -> None:
    found = judge(luks.GATE, with_volume(segments=(segment(blocks=0, entropy=0.0),)), LUKS_POLICY)
    assert found.verdict is Verdict.NOT_PROVEN
    assert keys(found.findings, Severity.UNPROVEN) == [("payload-unseen", "partition 2, segment 0")]


def test_what_lies_in_an_authenticated_volume_is_not_proven() -> None:
    """Its own journal need not look random, and what an earlier system left does not either."""
    fields = {"integrity": "hmac(sha256)", "holds": ("DM_integrity",), "entropy": 3.0}
    found = judge(luks.GATE, with_volume(segments=(segment(**fields),)), LUKS_POLICY)
    assert keys(found.findings, *DECISIVE) == [("payload-unsampled", "partition 2, segment 0")]
    assert found.verdict is Verdict.NOT_PROVEN
    # Without dm-integrity's superblock the data are not what the header says.
    for holds in (("DM_integrity", "ext4"), ()):
        other = segment(**{**fields, "holds": holds})
        assert judge(luks.GATE, with_volume(segments=(other,)), LUKS_POLICY).verdict is Verdict.FAIL


def test_what_deleted_files_left_is_a_remark() -> None:
    found = judge(luks.GATE, with_boot(free=700), LUKS_POLICY)
    assert ("free-space", "partition 1") in keys(found.findings, Severity.REMARK)
    assert found.verdict is Verdict.PASS


def test_acceptances_need_reasons_and_fit_one_kind() -> None:
    boot = plain("ext4", "xbootldr")
    accepted = PlainPartition(type="xbootldr", holds="ext4", reason="kernels", boots=False)
    assert judge(luks.GATE, installed(boot), policy(accept_plaintext=(ESP, accepted))).verdict is Verdict.PASS
    for changes in ({"reason": " "}, {"holds": "xfs"}, {"type": "esp"}):
        other = PlainPartition(**{**accepted.model_dump(), **changes})
        assert judge(luks.GATE, installed(boot), policy(accept_plaintext=(ESP, other))).verdict is Verdict.FAIL
    # Kernels may be on it, and this version cannot look for keys there.
    looked = PlainPartition(type="xbootldr", holds="ext4", reason="kernels")
    found = judge(luks.GATE, installed(boot), policy(accept_plaintext=(ESP, looked)))
    assert keys(found.findings, Severity.UNPROVEN) == [("not-looked-into", "partition 3")]
    unused = judge(luks.GATE, installed(), policy(accept_plaintext=(ESP, accepted)))
    assert ("unused-acceptance", f"{boot.type}: ext4") in keys(unused.findings, Severity.REMARK)


def test_what_is_not_known_is_accepted_if_it_is_small_or_random() -> None:
    accepted = PlainPartition(type="bios-boot", holds="unknown", reason="GRUB", boots=False)
    for size, entropy, verdict in (
        (MIB, 3.0, Verdict.PASS),
        (33 * MIB, 8.0, Verdict.PASS),
        (33 * MIB, 3.0, Verdict.FAIL),
    ):
        seen = installed(plain("unknown", "bios-boot", size=size, entropy=entropy))
        assert judge(luks.GATE, seen, policy(accept_plaintext=(ESP, accepted))).verdict is verdict


def test_accepted_keys_need_reasons() -> None:
    seen = with_boot(**files(file("/etc/x.key", "/initrd")))
    for reason, verdict in (("a public key", Verdict.PASS), ("", Verdict.FAIL)):
        accepted = PlainKey(path="/initrd!/etc/*.key", reason=reason)
        assert judge(luks.GATE, seen, policy(accept_keys=(accepted,))).verdict is verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"ciphers": ("cipher_null-ecb",)},
        {"ciphers": ("capi:ecb(cipher_null)-plain",)},
        {"ciphers": ()},
        {"passphrase_slots": 0, "recovery": False},
        {"pcrs": (24,)},
        {"pcrs": (7, 7)},
        {"recovery_slots": (32,)},
        {"refused": ("two\nlines",)},
        {"accept_keys": ({"path": "**", "reason": "x"},)},
        {"accept_plaintext": ({"type": "esb", "holds": "vfat"},)},
        {"memory_kib": 0},
    ],
)
def test_a_policy_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        policy(**changes)


def test_partition_types_by_name_guid_and_mbr() -> None:
    for text, kind in (("ESP", esp().type), (esp().type.upper(), esp().type), ("0xEF", "0xef"), ("", "")):
        assert PlainPartition(type=text, holds="vfat").type == kind


def test_a_baseline_accepts_what_lies_open_once_it_has_reasons() -> None:
    seen = installed(
        plain("ext4"), partitions=(esp(boot=boot_files(**files(file("/k.key")))), encrypted(), plain("xfs"))
    )
    text = luks.baseline(seen, LuksPolicy(memory_kib=65536))
    section = tomllib.loads(text)["gate"]["luks"]
    assert section["accept_plaintext"] == [
        {"type": "esp", "holds": "vfat", "reason": ""},
        {"type": "linux", "holds": "xfs", "reason": ""},
    ]
    assert section["accept_keys"] == [{"path": "/k.key", "reason": ""}]
    filled = tomllib.loads(re.sub('reason = ""', 'reason = "documented"', text))["gate"]["luks"]
    made = LuksPolicy.model_validate({"memory_kib": 65536, **filled})
    assert keys(judge(luks.GATE, seen, made).findings, Severity.VIOLATION) == []


def test_compare_names_what_changed() -> None:
    lines = luks.compare(installed(), with_volume(keyslots=(keyslot(0, kdf(memory=99)),), tokens=()))
    assert [text.partition(":")[0] for text in lines] == [
        "partition 2, keyslot 0",
        "partition 2, keyslot 1",
        "partition 2, token 0",
    ]
    assert luks.compare(installed(), installed()) == []
    assert "partition 3: not there" in luks.compare(installed(), installed(plain("swap")))[0]


@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(
        st.tuples(
            st.sampled_from(["argon2id", "argon2i", "pbkdf2"]),
            st.integers(0, 1 << 18),
            st.integers(0, 8),
            st.booleans(),
        ),
        max_size=5,
    ),
    claimed=st.lists(
        st.tuples(st.sampled_from(["systemd-recovery", "systemd-tpm2", "x"]), st.integers(0, 5)), max_size=4
    ),
)
def test_no_pass_with_a_weak_passphrase(slots: list[Any], claimed: list[Any]) -> None:
    """Whatever slots and tokens there are: a slot that no token owns alone is strong, or it is no PASS."""
    made = tuple(
        keyslot(number, kdf(type=kind, memory=memory, time=time), volume=opens)
        for number, (kind, memory, time, opens) in enumerate(slots)
    )
    tokens = tuple(
        TokenSeen(number=number, type=kind, keyslots=(slot,), pcrs=(7,), bank="sha256")
        for number, (kind, slot) in enumerate(claimed)
        if slot < len(made)
    )
    seen = with_volume(keyslots=made, tokens=tokens)
    if judge(luks.GATE, seen, LUKS_POLICY).verdict is not Verdict.PASS:
        return
    # A slot that is stretched has a passphrase, whoever names it.
    owned = {token.keyslots[0] for token in tokens if token.type != "x"} - {
        slot.number for slot in made if slot.kdf is None or slot.kdf.type != "pbkdf2"
    }
    for slot in made:
        strong = (
            slot.kdf is not None and slot.kdf.type == "argon2id" and slot.kdf.memory >= 65536 and slot.kdf.time >= 4
        )
        assert strong or slot.number in owned
    assert sum(slot.volume and slot.number not in owned for slot in made) == 1


def test_a_volume_on_a_bare_disk_needs_its_initrd_inside() -> None:
    """GRUB opens it, and reads kernel and initrd from there."""
    seen = installed(partitions=(encrypted(volume(), number=0, start=0),), table="none", gaps=())
    assert judge(luks.GATE, seen, LUKS_POLICY).verdict is Verdict.NOT_PROVEN
    assert judge(luks.GATE, seen, policy(initrd="encrypted", accept_plaintext=())).verdict is Verdict.PASS
