"""Rows of a sound machine with Secure Boot, to be spoiled by tests one thing at a time."""

from __future__ import annotations

from typing import Any

from pytest_osgates.checks.secureboot_model import (
    GUEST,
    MODULES,
    UKI_ROW,
    Came,
    Database,
    FileSeen,
    GuestSeen,
    Load,
    ModuleSeen,
    SecureBootObservation,
    SecureBootPolicy,
    Stage,
    StartSeen,
    UkiSeen,
    Way,
    tamper_of,
)
from pytest_osgates.model import State

POLICY = SecureBootPolicy()
UKI_POLICY = SecureBootPolicy(chain=(Stage.UKI,), keys="own", pk="pk.pem", kek=("kek.pem",), db=("db.pem",))
MICROSOFT = "CN=Microsoft Corporation UEFI CA 2011,O=Microsoft Corporation,C=US"
PLATFORM = Database(name="PK", certificates={"11" * 32: "CN=platform"})
EXCHANGE = Database(name="KEK", certificates={"22" * 32: "CN=platform"})
DB = Database(name="db", certificates={"33" * 32: MICROSOFT})
OWN_DB = Database(name="db", certificates={"44" * 32: "CN=own"})
BEFORE, AFTER = "aa" * 32, "bb" * 32
MOK = Database(name="MokList", certificates={"55" * 32: "CN=project"})
VENDOR = (
    Database(name="PK", certificates={"11" * 32: "CN=platform"}),
    Database(name="KEK", certificates={"22" * 32: "CN=platform"}),
    Database(name="db"),
)
UEFI_CA = "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507"
MACHINE_POLICY = SecureBootPolicy(keys="machine", microsoft=True, mok=("project.der",))
TAKEN = Load(status=0, loaded=True)
REJECTED = Load(status=1, said="insmod: ERROR: could not insert module ts_fsm.ko: Key was rejected by service")
UNAVAILABLE = REJECTED.model_copy(update={"log": ("[ 3.0] Loading of module with unavailable key is rejected",)})
LOCKED = Load(
    status=1,
    said="insmod: ERROR: could not insert module ts_fsm.ko: Operation not permitted",
    log=("[   9.1] Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7",),
)


def databases(policy: SecureBootPolicy = POLICY) -> tuple[Database, ...]:
    return (PLATFORM, EXCHANGE, DB if policy.with_microsoft else OWN_DB)


def guest(policy: SecureBootPolicy = POLICY, **changes: Any) -> GuestSeen:
    fields: dict[str, Any] = {
        "secure_boot": 1,
        "setup_mode": 0,
        "lockdown": "none [integrity] confidentiality",
        "lsm": "lockdown,capability,apparmor",
        "sig_enforce": "Y",
        "kernel": "6.12.117",
        "databases": databases(policy),
        **changes,
    }
    return GuestSeen(**fields)


def file(way: Way = Way.UNSIGNED, **changes: Any) -> FileSeen:
    same = way is Way.FORBIDDEN
    fields: dict[str, Any] = {
        "name": "ISO:/live/vmlinuz",
        "size": 4096,
        "signatures": 1,
        "before": "01" * 32,
        "after": "01" * 32 if same else "02" * 32,
        "digest_before": BEFORE,
        "digest_after": BEFORE if same or way is Way.WRONG else AFTER,
        **changes,
    }
    return FileSeen(**fields)


def start(role: Any, came: Came, **changes: Any) -> StartSeen:
    return StartSeen(role=role, came=came, line="the line", at=20.0, **changes)


def row(case: str, policy: SecureBootPolicy = POLICY, **changes: Any) -> SecureBootObservation:
    made: dict[str, Any] = {"enrolled": databases(policy)}
    tamper = tamper_of(case)
    if tamper is not None:
        stage, way = tamper
        spoilt = file(way)
        forbidden = way is Way.FORBIDDEN
        refuses = "first" if stage is policy.chain[0] else "later"
        made["files"] = (spoilt,)
        made["starts"] = (
            start(
                "tampered",
                Came.REFUSED,
                by="whoever",
                refuses=refuses,
                dbx=(spoilt.digest_after,) if forbidden else (),
            ),
            start(
                "twin",
                Came.STARTED,
                db=() if forbidden else (spoilt.digest_after,),
                dbx=("05" * 32,) if forbidden else (),
            ),
        )
    elif case == GUEST:
        made["guest"] = guest(policy)
    elif case == UKI_ROW:
        sections = {".linux": "1", ".osrel": "2", ".cmdline": "3"}
        made["ukis"] = (UkiSeen(name="ISO:/EFI/BOOT/BOOTX64.EFI", sections=sections, pcr11="00" * 32),)
    elif case in MODULES:
        tampered = {"module-unsigned": LOCKED, "module-wrongly-signed": UNAVAILABLE, "module-changed": REJECTED}[case]
        made["module"] = ModuleSeen(
            way=case, name="ts_fsm", path="/lib/modules/x.ko", before="1", after="2", intact=TAKEN, tampered=tampered
        )
    return SecureBootObservation(**{"case": case, "state": State.LIVE, **made, **changes})


def machine(policy: SecureBootPolicy = MACHINE_POLICY, **changes: Any) -> SecureBootObservation:
    """The row `guest` of an installed machine with its own keys: Microsoft's, the firmware vendor's, and the MOK."""
    keys = (PLATFORM, EXCHANGE, Database(name="db", certificates={UEFI_CA: MICROSOFT}))
    listed = Database(name="MokListRT", certificates={**MOK.certificates, "66" * 32: "CN=vendor of shim"})
    made: dict[str, Any] = {
        "enrolled": (*keys, MOK),
        "expected": (Database(name="PK"), Database(name="KEK"), Database(name="db"), MOK),
        "vendor": VENDOR,
        "guest": guest(policy, databases=(*keys, listed)),
        **changes,
    }
    return row("guest", policy, **made)
