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
    MICROSOFT,
    OWN_DB,
    POLICY,
    TAKEN,
    UKI_POLICY,
    databases,
    file,
    guest,
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
        *("module-unsigned", "module-wrongly-signed"),
    ) == ROWS
    assert UKI_POLICY.rows() == (
        *("guest", "uki-unsigned", "uki-wrongly-signed", "uki-changed", "uki-in-dbx", "uki"),
        *("module-unsigned", "module-wrongly-signed"),
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


def test_a_machine_that_does_not_boot() -> None:
    assert verdict(row("guest", guest=None, booted="failed: panic", failed=True)) == (
        Verdict.FAIL,
        {("not-booted", "guest")},
    )
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
    assert refusal_of(LOCKED)
    enforced = Load(
        status=1,
        said="insmod: ERROR: could not insert module x.ko: Required key not available",
        log=("[ 3.0] Loading of module with unavailable key is rejected",),
    )
    assert refusal_of(enforced)
    assert not refusal_of(Load(status=1, said="Required key not available"))


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
        ({"pk": "x"}, 'are for keys = "own"'),
        ({"keys": "machine", "mok": ["x"]}, "are what they are"),
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
