"""The judge of the gate `secureboot`: what passes, and what each deviation is called."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.secureboot import GATE, judge, level, refusal_of
from pytest_osgates.checks.secureboot_model import (
    Came,
    Database,
    Load,
    PcrSignature,
    SecureBootObservation,
    SecureBootPolicy,
    Stage,
    UkiSeen,
    microsofts,
    module_refusals,
    patterns,
    refusals,
    tamper_of,
)
from pytest_osgates.judging import judge as judge_gate
from pytest_osgates.model import Severity, Verdict
from tests.unit.secureboot_samples import (
    DB,
    LOCKED,
    MACHINE_POLICY,
    MICROSOFT,
    MOK,
    OWN_DB,
    PLATFORM,
    POLICY,
    REJECTED,
    TAKEN,
    UEFI_CA,
    UKI_POLICY,
    databases,
    file,
    guest,
    machine,
    row,
    start,
)

ROWS = POLICY.rows()
REFUSED = tuple(case for case in ROWS if tamper_of(case) is not None)


def verdict(seen: SecureBootObservation, policy: SecureBootPolicy = POLICY) -> tuple[Verdict, set[tuple[str, str]]]:
    done = judge_gate(GATE, seen, policy)
    return done.verdict, {finding.key for finding in done.findings}


def test_the_rows_of_a_chain() -> None:
    assert (
        "guest",
        *("shim-unsigned", "shim-wrongly-signed", "loader-unsigned", "loader-wrongly-signed"),
        *("kernel-unsigned", "kernel-wrongly-signed", "shim-in-dbx"),
        *("module-unsigned", "module-wrongly-signed", "module-changed"),
    ) == ROWS
    assert UKI_POLICY.rows() == (
        *("guest", "uki-unsigned", "uki-wrongly-signed", "uki-changed", "uki-in-dbx", "uki"),
        *("module-unsigned", "module-wrongly-signed", "module-changed"),
    )


@pytest.mark.parametrize("policy", [POLICY, UKI_POLICY], ids=["shim", "uki"])
def test_a_sound_machine_passes_each_row_and_every_control_is_caught(policy: SecureBootPolicy) -> None:
    for case in policy.rows():
        done = judge_gate(GATE, row(case, policy), policy)
        assert [control for control in done.controls if not control.caught] == []
        assert (done.verdict, done.findings) == (Verdict.PASS, ()), case


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    ("came", "rule", "said"),
    [
        (Came.STARTED, "started", Verdict.FAIL),
        (Came.SILENT, "timeout", Verdict.NOT_PROVEN),
        (Came.ENDED, "no-word", Verdict.NOT_PROVEN),
    ],
)
def test_what_is_not_refused(case: str, came: Came, rule: str, said: Verdict) -> None:
    seen = row(case)
    spoilt = seen.starts[0].model_copy(update={"came": came, "by": "", "refuses": ""})
    found = verdict(seen.model_copy(update={"starts": (spoilt, *seen.starts[1:])}))
    assert found == (said, {(rule, case)})


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_without_a_twin_that_starts_proves_nothing(case: str) -> None:
    seen = row(case)
    for starts in (
        seen.starts[:1],
        (*seen.starts, seen.starts[1]),
        (seen.starts[0], seen.starts[1].model_copy(update={"came": Came.REFUSED})),
        # Its variables were those of the other.
        (seen.starts[0], seen.starts[1].model_copy(update={"db": (), "dbx": seen.starts[0].dbx})),
    ):
        assert verdict(seen.model_copy(update={"starts": starts})) == (Verdict.NOT_PROVEN, {("twin", case)})


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_of_another_link_is_none(case: str) -> None:
    """A kernel that nobody reads because shim was refused already, or the other way round."""
    seen = row(case)
    other = {"first": "later", "later": "first"}[seen.starts[0].refuses]
    spoilt = seen.starts[0].model_copy(update={"refuses": other})
    found = verdict(seen.model_copy(update={"starts": (spoilt, seen.starts[1])}))
    assert found == (Verdict.NOT_PROVEN, {("refused-by-another", case)})


@pytest.mark.parametrize("case", REFUSED)
def test_what_was_not_changed_as_the_row_says(case: str) -> None:
    seen = row(case)
    (spoilt,) = seen.files
    changes: tuple[dict[str, Any], ...] = ({"after": "03" * 32, "digest_after": "04" * 32},)
    if not case.endswith("-in-dbx"):
        changes = (
            {"after": spoilt.before},
            {"digest_after": "cc" * 32 if "wrongly" in case else spoilt.digest_before},
        )
    for change in changes:
        bad = seen.model_copy(update={"files": (spoilt.model_copy(update=change),)})
        said, found = verdict(bad)
        assert said is Verdict.NOT_PROVEN
        assert ("not-applied", case) in found


def test_a_hash_in_db_makes_no_tampered_boot() -> None:
    """It would have been let in by that."""
    seen = row("kernel-unsigned")
    spoilt = seen.starts[0].model_copy(update={"db": (seen.files[0].digest_after,)})
    found = verdict(seen.model_copy(update={"starts": (spoilt, seen.starts[1])}))
    assert found == (Verdict.NOT_PROVEN, {("not-applied", "kernel-unsigned")})


def test_a_program_that_was_shipped_without_a_signature() -> None:
    seen = row("kernel-unsigned", files=(file(), file(name="ISO:/x", signatures=0)), starts=())
    assert verdict(seen) == (Verdict.FAIL, {("not-signed", "kernel-unsigned: ISO:/x")})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"files": ()}, "no-file"),
        ({"starts": ()}, "no-boot"),
        ({"error": "cannot be read"}, "not-observed"),
        ({"starts": (start("twin", Came.STARTED),)}, "no-boot"),
    ],
)
def test_nothing_seen_is_nothing_proven(changes: dict[str, Any], rule: str) -> None:
    said, found = verdict(row("loader-unsigned", **changes))
    assert said is Verdict.NOT_PROVEN
    assert (rule, "loader-unsigned") in found


@pytest.mark.parametrize(
    ("changes", "said", "key"),
    [
        ({"secure_boot": 0}, Verdict.FAIL, ("secure-boot", "SecureBoot")),
        ({"secure_boot": None}, Verdict.NOT_PROVEN, ("secure-boot", "SecureBoot")),
        ({"secure_boot": 2}, Verdict.FAIL, ("secure-boot", "SecureBoot")),
        ({"setup_mode": 1}, Verdict.FAIL, ("setup-mode", "SetupMode")),
        ({"lockdown": "[none] integrity confidentiality"}, Verdict.FAIL, ("lockdown", "lockdown")),
        ({"lockdown": "integrity"}, Verdict.NOT_PROVEN, ("lockdown", "lockdown")),
        ({"lockdown": "", "lsm": "capability,yama"}, Verdict.FAIL, ("lockdown", "lockdown")),
        ({"lockdown": "", "lsm": ""}, Verdict.NOT_PROVEN, ("lockdown", "lockdown")),
        ({"sig_enforce": "N"}, Verdict.FAIL, ("sig-enforce", "module.sig_enforce")),
        ({"sig_enforce": "maybe"}, Verdict.NOT_PROVEN, ("sig-enforce-unread", "module.sig_enforce")),
        ({"databases": databases()[:2]}, Verdict.NOT_PROVEN, ("keys", "db")),
        (
            {"databases": (*databases()[:2], DB.model_copy(update={"certificates": {"99" * 32: MICROSOFT}}))},
            Verdict.FAIL,
            ("keys", "db"),
        ),
    ],
)
def test_what_the_guest_says(changes: dict[str, Any], said: Verdict, key: tuple[str, str]) -> None:
    assert verdict(row("guest", guest=guest(**changes))) == (said, {key})


def test_lockdown_is_at_least_what_the_profile_wants() -> None:
    strict = SecureBootPolicy(lockdown="confidentiality")
    assert verdict(row("guest"), strict) == (Verdict.FAIL, {("lockdown", "lockdown")})
    more = guest(lockdown="none integrity [confidentiality]")
    assert verdict(row("guest", guest=more))[0] is Verdict.PASS


@given(st.text(max_size=60))
def test_any_text_has_a_level_or_none(text: str) -> None:
    assert level(text) in ("", "none", "integrity", "confidentiality")


def test_sig_enforce_can_be_given_up_for_a_reason() -> None:
    accepted = SecureBootPolicy(accept_sig_enforce="lockdown does it")
    done = judge_gate(GATE, row("guest", guest=guest(sig_enforce="N")), accepted)
    assert (done.verdict, done.accepted) == (Verdict.PASS, 1)
    (remark,) = judge(row("guest"), accepted)
    assert (remark.rule, remark.severity) == ("unused-acceptance", Severity.REMARK)
    assert verdict(row("guest", guest=guest(sig_enforce="N")), SecureBootPolicy(accept_sig_enforce=" "))[0] is (
        Verdict.FAIL
    )


def test_microsofts_keys_are_there_or_not_as_the_profile_says() -> None:
    own = UKI_POLICY
    with_microsoft = (*databases(own)[:2], DB)
    seen = row("guest", own, guest=guest(own, databases=with_microsoft), enrolled=with_microsoft)
    assert verdict(seen, own) == (Verdict.FAIL, {("microsoft-present", "db")})
    kek = Database(name="KEK", certificates={"22" * 32: MICROSOFT})
    in_kek = (databases(own)[0], kek, OWN_DB)
    seen = row("guest", own, guest=guest(own, databases=in_kek), enrolled=in_kek)
    assert verdict(seen, own) == (Verdict.FAIL, {("microsoft-present", "KEK")})
    without = (*databases()[:2], OWN_DB)
    seen = row("guest", guest=guest(databases=without), enrolled=without)
    assert verdict(seen) == (Verdict.FAIL, {("microsoft-absent", "db")})
    # A subject that only looks like it.
    looks = OWN_DB.model_copy(update={"certificates": {"44" * 32: "CN=O\\=Microsoft,O=Own"}})
    assert looks.microsoft == ()


def test_the_machine_owner_keys_are_in_shims_list() -> None:
    mok = Database(name="MokList", certificates={"55" * 32: "CN=project"})
    enrolled = (*databases(), mok)
    assert verdict(row("guest", enrolled=enrolled)) == (Verdict.NOT_PROVEN, {("mok", "MokListRT")})
    other = Database(name="MokListRT", certificates={"66" * 32: "CN=vendor"})
    seen = row("guest", enrolled=enrolled, guest=guest(databases=(*databases(), other)))
    assert verdict(seen) == (Verdict.FAIL, {("mok", "MokListRT")})
    both = other.model_copy(update={"certificates": {**other.certificates, **mok.certificates}})
    seen = row("guest", enrolled=enrolled, guest=guest(databases=(*databases(), both)))
    assert verdict(seen)[0] is Verdict.PASS


def test_a_machine_with_the_projects_keys_passes_and_every_control_is_caught() -> None:
    done = judge_gate(GATE, machine(), MACHINE_POLICY)
    assert [control for control in done.controls if not control.caught] == []
    assert (done.verdict, done.findings) == (Verdict.PASS, ())


def enrolled(name: str, **changes: Any) -> SecureBootObservation:
    """The machine, where one variable is another one, and the guest sees it."""
    seen = machine()
    assert seen.guest is not None

    def changed(entries: tuple[Database, ...]) -> tuple[Database, ...]:
        return tuple(entry.model_copy(update=changes) if entry.name == name else entry for entry in entries)

    there = seen.guest.model_copy(update={"databases": changed(seen.guest.databases)})
    return seen.model_copy(update={"enrolled": changed(seen.enrolled), "guest": there})


@pytest.mark.parametrize(
    ("seen", "said", "found"),
    [
        # The installer has enrolled nothing.
        (machine(enrolled=machine().enrolled[:3]), Verdict.FAIL, {("keys-missing", "MokList")}),
        (enrolled("MokList", certificates={}), Verdict.FAIL, {("keys-missing", "MokList")}),
        (
            enrolled("MokList", certificates={}, error="it breaks off"),
            Verdict.NOT_PROVEN,
            {("keys-unread", "MokList")},
        ),
        (enrolled("MokList", digests=2), Verdict.FAIL, {("keys-digests", "MokList")}),
        (enrolled("db", digests=1), Verdict.FAIL, {("keys-digests", "db")}),
        (
            enrolled("db", certificates={UEFI_CA: MICROSOFT, "77" * 32: "CN=stranger"}),
            Verdict.FAIL,
            {("keys-foreign", "db")},
        ),
        # A subject can be written by anybody.
        (
            enrolled("db", certificates={UEFI_CA: MICROSOFT, "77" * 32: MICROSOFT}),
            Verdict.FAIL,
            {("keys-foreign", "db")},
        ),
        (enrolled("PK", certificates={"77" * 32: "CN=stranger"}), Verdict.FAIL, {("keys-foreign", "PK")}),
        (machine(expected=()), Verdict.NOT_PROVEN, {("keys-unnamed", "keys")}),
        (
            machine(expected=(Database(name="MokList"), Database(name="PK", certificates=PLATFORM.certificates))),
            Verdict.NOT_PROVEN,
            {("keys-unnamed", "keys")},
        ),
    ],
)
def test_whose_keys_a_machine_has(seen: SecureBootObservation, said: Verdict, found: set[tuple[str, str]]) -> None:
    verdict_, all_found = verdict(seen, MACHINE_POLICY)
    assert verdict_ is said
    assert {key for key in all_found if key[0].startswith("keys-")} == found


def test_a_foreign_machine_owner_key() -> None:
    more = {**MOK.certificates, "77" * 32: "CN=stranger"}
    seen = enrolled("MokList", certificates=more)
    assert ("keys-foreign", "MokList") in verdict(seen, MACHINE_POLICY)[1]


def test_a_machine_whose_keys_nobody_names_proves_nothing() -> None:
    """Compared with themselves, any keys would do."""
    unnamed = SecureBootPolicy(keys="machine", microsoft=True)
    assert verdict(machine(unnamed, expected=()), unnamed) == (Verdict.NOT_PROVEN, {("keys-unnamed", "keys")})


def test_a_machine_of_ones_own_keys_has_no_others() -> None:
    own = SecureBootPolicy(keys="machine", pk="pk", kek=("kek",), db=("db",))
    keys = (*databases(own)[:2], OWN_DB)
    seen = machine(own, enrolled=keys, expected=keys, guest=guest(own, databases=keys))
    done = judge_gate(GATE, seen, own)
    assert (done.verdict, done.findings) == (Verdict.PASS, ())
    assert all(control.caught for control in done.controls)
    # The firmware vendor's is foreign there.
    other = (PLATFORM.model_copy(update={"certificates": {"99" * 32: "CN=vendor"}}), *keys[1:])
    seen = machine(own, enrolled=other, expected=keys, guest=guest(own, databases=other), vendor=other)
    assert verdict(seen, own) == (Verdict.FAIL, {("keys-foreign", "PK"), ("keys-missing", "PK")})
    # Named, and Microsoft's beside them.
    both = SecureBootPolicy(keys="machine", microsoft=True, pk="pk", kek=("kek",), db=("db",))
    with_microsoft = (*keys[:2], Database(name="db", certificates={**OWN_DB.certificates, UEFI_CA: MICROSOFT}))
    seen = machine(both, enrolled=with_microsoft, expected=keys, guest=guest(both, databases=with_microsoft))
    assert verdict(seen, both)[0] is Verdict.PASS


def test_microsofts_certificates_are_known_by_their_digests() -> None:
    assert UEFI_CA in microsofts("db")
    assert not microsofts("db") & microsofts("KEK")
    assert all(re.fullmatch("[0-9a-f]{64}", each) for name in ("db", "KEK") for each in microsofts(name))
    assert microsofts("PK") == microsofts("MokList") == frozenset()


def test_a_refusal_after_which_something_happens_until_the_deadline() -> None:
    for case in REFUSED:
        seen = row(case)
        busy = seen.starts[0].model_copy(update={"restless": True})
        found = verdict(seen.model_copy(update={"starts": (busy, seen.starts[1])}))
        assert found == (Verdict.NOT_PROVEN, {("restless", case)})


def test_a_program_that_was_not_spoilt_is_no_violation() -> None:
    """The firmware says which one it starts; of later links it says nothing."""

    def told(case: str, loaded: str) -> tuple[Verdict, set[tuple[str, str]]]:
        spoilt = file(name="partition 1:/EFI/debian/shimx64.efi")
        ran = start("tampered", Came.STARTED, loaded=loaded)
        return verdict(row(case, files=(spoilt,), starts=(ran,)))

    case = "shim-unsigned"
    said, found = told(case, "/EFI/opensuse/odd.efi")
    assert (said, ("started-another", case) in found, ("started", case) in found) == (Verdict.NOT_PROVEN, True, False)
    assert told(case, "/efi/DEBIAN/SHIMX64.EFI") == (Verdict.FAIL, {("started", case)})
    assert told(case, "") == (Verdict.FAIL, {("started", case)})
    assert told("kernel-unsigned", "/EFI/opensuse/odd.efi") == (Verdict.FAIL, {("started", "kernel-unsigned")})


@pytest.mark.parametrize(
    ("case", "loaded", "doubted"),
    [
        ("shim-unsigned", "/efi/DEBIAN/shimx64.efi", True),
        ("shim-in-dbx", "/EFI/debian/shimx64.efi", True),
        # Another entry of the firmware's, after the refusal.
        ("shim-unsigned", "/EFI/opensuse/odd.efi", False),
        ("shim-unsigned", "", False),
        # Of later links it starts the first one, as it should.
        ("kernel-unsigned", "/EFI/debian/shimx64.efi", False),
    ],
)
def test_a_refusal_of_what_the_firmware_started_is_about_something_else(
    case: str, loaded: str, doubted: bool
) -> None:
    sound = row(case)
    name = "partition 1:/EFI/debian/shimx64.efi"
    starts = tuple(
        each.model_copy(update={"loaded": loaded}) if each.role == "tampered" else each for each in sound.starts
    )
    spoilt = tuple(each.model_copy(update={"name": name}) for each in sound.files)
    found = judge(sound.model_copy(update={"files": spoilt, "starts": starts}), POLICY)
    assert [(each.key, each.severity) for each in found] == (
        [(("refused-and-started", case), Severity.UNPROVEN)] if doubted else []
    )


def test_a_machine_without_its_boot_entries_may_fail_for_the_want_of_them() -> None:
    seen = row("guest", guest=None, booted="failed: no boot device", failed=True, entries=False)
    assert verdict(seen) == (Verdict.NOT_PROVEN, {("not-booted", "guest")})


def test_a_machine_that_does_not_boot() -> None:
    assert verdict(row("guest", guest=None, booted="failed: panic", failed=True)) == (
        Verdict.FAIL,
        {("not-booted", "guest")},
    )
    code = {"serial": ("Code: 0f <1f> 44 00 00", "Kernel panic - not syncing: x")}
    for accelerator, said in (("tcg", Verdict.NOT_PROVEN), ("kvm", Verdict.FAIL)):
        emulated = row("guest", guest=None, booted="failed: kernel-panic", failed=True, consoles=code)
        assert verdict(emulated.model_copy(update={"accelerator": accelerator}))[0] is said
    assert verdict(row("guest", guest=None, booted="timeout")) == (Verdict.NOT_PROVEN, {("not-booted", "guest")})
    assert verdict(row("module-unsigned", module=None, booted="failed: panic", failed=True))[0] is Verdict.NOT_PROVEN


@pytest.mark.parametrize(
    ("changes", "said", "rule"),
    [
        ({"tampered": TAKEN}, Verdict.FAIL, "module-loaded"),
        ({"tampered": Load(status=1, said="x", loaded=True)}, Verdict.FAIL, "module-loaded"),
        ({"tampered": Load(status=1, said="Invalid module format")}, Verdict.NOT_PROVEN, "other-reason"),
        # Root without the right to load modules, or a module that nobody may load any more.
        ({"tampered": Load(status=1, said="Operation not permitted")}, Verdict.NOT_PROVEN, "other-reason"),
        ({"tampered": Load(status=127, said="sh: insmod: not found")}, Verdict.NOT_PROVEN, "other-reason"),
        ({"intact": LOCKED}, Verdict.NOT_PROVEN, "twin"),
        ({"after": "1"}, Verdict.NOT_PROVEN, "not-applied"),
    ],
)
def test_modules(changes: dict[str, Any], said: Verdict, rule: str) -> None:
    seen = row("module-unsigned")
    assert seen.module is not None
    spoilt = seen.model_copy(update={"module": seen.module.model_copy(update=changes)})
    assert verdict(spoilt) == (said, {(rule, "module-unsigned")})


def test_refusals_of_modules_that_are_known() -> None:
    assert refusal_of(LOCKED, "module-unsigned")
    assert refusal_of(LOCKED, "module-wrongly-signed")
    assert not refusal_of(LOCKED, "module-changed")
    enforced = Load(
        status=1,
        said="insmod: ERROR: could not insert module x.ko: Required key not available",
        log=("[ 3.0] Loading of module with unavailable key is rejected",),
    )
    assert refusal_of(enforced, "module-wrongly-signed")
    assert not refusal_of(enforced, "module-unsigned")
    # A signature that does not fit is refused by any kernel that looks at signatures: it says nothing of the key.
    assert refusal_of(REJECTED, "module-changed")
    assert not refusal_of(REJECTED, "module-wrongly-signed")
    assert not refusal_of(REJECTED, "module-unsigned")
    assert not refusal_of(Load(status=1, said="Required key not available"), "module-wrongly-signed")
    no_hash = enforced.model_copy(update={"log": ("Loading of module with unsupported crypto is rejected",)})
    assert not any(refusal_of(no_hash, way) for way in ("module-unsigned", "module-wrongly-signed"))


def test_unified_kernel_images() -> None:
    image = row("uki", UKI_POLICY).ukis[0]

    def told(policy: SecureBootPolicy = UKI_POLICY, **changes: Any) -> tuple[Verdict, set[tuple[str, str]]]:
        return verdict(row("uki", policy, ukis=(image.model_copy(update=changes),)), policy)

    strict = UKI_POLICY.model_copy(update={"pcr_signature": True})
    assert told(strict) == (Verdict.FAIL, {("uki-pcrsig", image.name)})
    with_signature = {**image.sections, ".pcrsig": "4"}
    good = PcrSignature(pcrs=(11,), phase="enter-initrd", policy_fits=True, signature_fits=True)
    assert told(strict, sections=with_signature, signed=(good,))[0] is Verdict.PASS
    for bad in ({"policy_fits": False}, {"signature_fits": False}):
        spoilt = good.model_copy(update=bad)
        assert told(sections=with_signature, signed=(good, spoilt)) == (Verdict.FAIL, {("uki-pcrsig", image.name)})
    assert told(sections=with_signature) == (Verdict.FAIL, {("uki-pcrsig", image.name)})
    assert told(sections={".linux": "1", ".osrel": "2"}) == (Verdict.FAIL, {("uki-cmdline", image.name)})
    with_profiles = {**image.sections, ".profile": "5"}
    assert told(sections=with_profiles) == (Verdict.NOT_PROVEN, {("uki-profiles", image.name)})
    assert told(error="cut short") == (Verdict.NOT_PROVEN, {("uki-unread", image.name)})
    assert verdict(row("uki", UKI_POLICY, ukis=()), UKI_POLICY) == (Verdict.NOT_PROVEN, {("no-file", "uki")})
    assert isinstance(image, UkiSeen)


def test_a_row_that_the_profile_does_not_have() -> None:
    assert verdict(row("uki-changed", UKI_POLICY)) == (Verdict.NOT_PROVEN, {("unknown-row", "uki-changed")})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"chain": ["kernel", "shim"]}, "each link once"),
        ({"chain": ["shim", "loader"]}, "ends with a kernel"),
        ({"chain": ["kernel", "uki"]}, "ends with a kernel"),
        ({"chain": []}, "each link once"),
        ({"keys": "own", "pk": "x"}, "pk and kek at least"),
        ({"keys": "own", "pk": "x", "kek": ["x"]}, "nothing is ever started"),
        ({"pk": "x"}, 'are for keys = "own" and "machine"'),
        ({"settle_s": 10}, "greater than or equal to 30"),
        ({"microsoft": False}, "without Microsoft's keys"),
        ({"files": {"uki": ["x"]}}, "which the chain does not have"),
        ({"files": {"kernel": [".*"]}}, "fits anything"),
        ({"modules": ["../x"]}, "the name of a module"),
        ({"modules": []}, "at least 1"),
        ({"deadline_s": float("inf")}, "finite"),
    ],
)
def test_profiles_that_contradict_themselves(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SecureBootPolicy(**keys)


def test_which_files_are_links_of_the_chain() -> None:
    def fits(stage: Stage, path: str, policy: SecureBootPolicy = POLICY) -> bool:
        return patterns(policy, stage).search(path) is not None

    assert fits(Stage.SHIM, "/EFI/BOOT/BOOTX64.EFI")
    assert fits(Stage.SHIM, "/EFI/debian/shimx64.efi")
    assert fits(Stage.SHIM, "/EFI/opensuse/shim.efi")
    assert fits(Stage.LOADER, "/EFI/opensuse/grub.efi")
    assert not fits(Stage.LOADER, "/EFI/BOOT/grubia32.efi")
    assert fits(Stage.KERNEL, "/casper/hwe-vmlinuz")
    assert not fits(Stage.LOADER, "/EFI/BOOT/BOOTX64.EFI")
    assert fits(Stage.LOADER, "/EFI/boot/grubx64.efi")
    assert fits(Stage.KERNEL, "/live/vmlinuz-6.12.117+deb13-amd64")
    assert fits(Stage.KERNEL, "/vmlinuz")
    assert not fits(Stage.KERNEL, "/live/initrd.img")
    own = SecureBootPolicy(
        chain=(Stage.LOADER, Stage.KERNEL), keys="own", pk="p", kek=("k",), db=("d",), files={Stage.KERNEL: ("^/k$",)}
    )
    assert fits(Stage.LOADER, "/EFI/BOOT/BOOTX64.EFI", own)
    assert fits(Stage.KERNEL, "/k", own)
    assert not fits(Stage.KERNEL, "/vmlinuz", own)
    assert fits(Stage.UKI, "/EFI/BOOT/bootx64.efi", UKI_POLICY)
    assert fits(Stage.UKI, "/EFI/Linux/a.efi", UKI_POLICY)


def test_knowledge_says_where_it_comes_from_and_compiles() -> None:
    assert all(entry.source for entry in refusals())
    assert all(entry.source for entry in module_refusals())
    for refusal in refusals():
        assert bool(refusal.links) is (refusal.refuses == "later")
        assert not re.compile(refusal.regex).search("")
    assert all(re.compile(entry.log) and re.compile(entry.error) for entry in module_refusals())


@given(st.sampled_from(ROWS), st.data())
def test_no_row_passes_by_another_rows_observation(case: str, data: st.DataObject) -> None:
    other = data.draw(st.sampled_from([name for name in ROWS if name != case]))
    seen = row(other).model_copy(update={"case": case})
    one, two = tamper_of(case), tamper_of(other)
    if one is not None and two is not None and one[1] is two[1]:
        # The same way of spoiling another program.
        return
    assert verdict(seen)[0] is not Verdict.PASS
