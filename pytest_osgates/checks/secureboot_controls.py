"""Controls of the gate `secureboot`: what a machine that starts anything would have shown instead."""

from __future__ import annotations

from collections.abc import Callable

from pytest_osgates.checks.secureboot_model import (
    GUEST,
    TAMPERED,
    TWIN,
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
    UkiSeen,
    Way,
    tamper_of,
)
from pytest_osgates.model import Control, Severity

_UNPROVEN = Severity.UNPROVEN

Sabotage = Callable[[SecureBootObservation], SecureBootObservation]


def controls(seen: SecureBootObservation, policy: SecureBootPolicy) -> tuple[Control[SecureBootObservation], ...]:
    """What a machine that starts anything would have shown instead."""
    if seen.case not in policy.rows():
        return ()
    case = seen.case
    tamper = tamper_of(case)
    if tamper is not None:
        return _boot_controls(case, tamper, policy)
    if case == UKI_ROW:
        return (
            Control("no image was found", _with(ukis=()), "no-file", case, _UNPROVEN),
            *(
                Control("a command line for anybody to choose", _without_cmdline, "uki-cmdline", image.name)
                for image in seen.ukis[:1]
            ),
        )
    made = [Control("it did not get ready", _with(booted="timeout", failed=False), "not-booted", case, _UNPROVEN)]
    if case == GUEST:
        made.append(
            Control(
                "it does not boot", _with(booted="failed: kernel panic", failed=True, consoles={}), "not-booted", case
            )
        )
        return (*made, *_guest_controls(policy))
    return (
        *made,
        Control("a kernel that takes any module", _tampered_load(_TAKEN), "module-loaded", case),
        Control("a module that is none", _tampered_load(_FORMAT), "other-reason", case, _UNPROVEN),
        Control("a kernel that takes no module", _intact_load(_FORMAT), "twin", case, _UNPROVEN),
        Control("no module was tried", _with(module=None), "no-module", case, _UNPROVEN),
    )


def _boot_controls(
    case: str, tamper: tuple[Stage, Way], policy: SecureBootPolicy
) -> tuple[Control[SecureBootObservation], ...]:
    right, wrong = ("first", "later") if tamper[0] is policy.chain[0] else ("later", "first")
    made = [
        Control("a machine that starts it", _came_to(Came.STARTED), "started", case),
        Control("nothing was seen", _came_to(Came.SILENT), "timeout", case, _UNPROVEN),
        Control("it ended without a word", _came_to(Came.ENDED), "no-word", case, _UNPROVEN),
        Control("its twin does not start", _came_to(Came.SILENT, TWIN), "twin", case, _UNPROVEN),
        Control("no twin", _only(TAMPERED), "twin", case, _UNPROVEN),
        Control("no boot", _with(starts=()), "no-boot", case, _UNPROVEN),
        Control("no program was found", _with(files=()), "no-file", case, _UNPROVEN),
    ]
    if tamper[1] is not Way.FORBIDDEN:
        made.append(Control("nothing was changed", _unchanged, "not-applied", case, _UNPROVEN))
    return (
        *made,
        Control("another is refused", _refused_by(wrong), "refused-by-another", case, _UNPROVEN),
        Control("it is still at work at the deadline", _restless(right), "restless", case, _UNPROVEN),
    )


def _guest_controls(policy: SecureBootPolicy) -> tuple[Control[SecureBootObservation], ...]:
    made = [
        Control("Secure Boot is off", _guest_with(secure_boot=0), "secure-boot", "SecureBoot"),
        Control(
            "nobody says whether it is on", _guest_with(secure_boot=None), "secure-boot", "SecureBoot", _UNPROVEN
        ),
        Control("anybody may enrol keys", _guest_with(setup_mode=1), "setup-mode", "SetupMode"),
        Control(
            "a kernel that root may change",
            _guest_with(lockdown="[none] integrity confidentiality"),
            "lockdown",
            "lockdown",
        ),
        Control("no word on lockdown", _guest_with(lockdown="", lsm=""), "lockdown", "lockdown", _UNPROVEN),
        Control(
            "no word on modules", _guest_with(sig_enforce=""), "sig-enforce-unread", "module.sig_enforce", _UNPROVEN
        ),
        Control("the guest was not asked", _with(guest=None), "not-asked", GUEST, _UNPROVEN),
        Control("another key in db", _another_key, "keys", "db"),
        Control("Microsoft's, the other way round", _swapped, *_microsoft_rule(policy)),
    ]
    if policy.keys == "machine" and (policy.pk or policy.kek or policy.db or policy.mok):
        made += [
            Control("nobody says whose keys", _with(expected=()), "keys-unnamed", "keys", _UNPROVEN),
            Control("somebody's Machine Owner Key", _mok_list(_SOMEBODY), "keys-foreign", "MokList"),
            Control("a program by its digest", _mok_list(digests=1), "keys-digests", "MokList"),
            Control("a damaged MokList", _mok_list(error="it breaks off"), "keys-unread", "MokList", _UNPROVEN),
        ]
    if policy.mok:
        made.append(Control("shim does not have the project's key", _forgets_mok, "mok", "MokListRT"))
    if not policy.accept_sig_enforce.strip():
        made.append(Control("unsigned modules", _guest_with(sig_enforce="N"), "sig-enforce", "module.sig_enforce"))
    return tuple(made)


def _microsoft_rule(policy: SecureBootPolicy) -> tuple[str, str]:
    return ("microsoft-absent" if policy.with_microsoft else "microsoft-present", "db")


_TAKEN = Load(status=0, loaded=True)
_FORMAT = Load(status=1, said="insmod: ERROR: could not insert module: Invalid module format")


def _with(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(update=changes)


def _guest_with(**changes: object) -> Sabotage:
    return lambda seen: seen.model_copy(
        update={"guest": (seen.guest or GuestSeen()).model_copy(update=changes), "booted": ""}
    )


def _database(seen: SecureBootObservation, change: Callable[[Database], Database]) -> SecureBootObservation:
    guest = seen.guest or GuestSeen()
    entries = tuple(change(entry) if entry.name == "db" else entry for entry in guest.databases)
    return seen.model_copy(update={"guest": guest.model_copy(update={"databases": entries})})


def _another_key(seen: SecureBootObservation) -> SecureBootObservation:
    return _database(
        seen, lambda db: db.model_copy(update={"certificates": {**db.certificates, "00" * 32: "CN=another"}})
    )


_SOMEBODY = {"00" * 32: "CN=somebody"}


def _mok_list(certificates: dict[str, str] | None = None, *, digests: int = 0, error: str = "") -> Sabotage:
    def sabotage(seen: SecureBootObservation) -> SecureBootObservation:
        rest = tuple(entry for entry in seen.enrolled if entry.name != "MokList")
        old = next((entry.certificates for entry in seen.enrolled if entry.name == "MokList"), {})
        made = Database(name="MokList", certificates={**old, **(certificates or {})}, digests=digests, error=error)
        return seen.model_copy(update={"enrolled": (*rest, made)})

    return sabotage


def _forgets_mok(seen: SecureBootObservation) -> SecureBootObservation:
    guest = seen.guest or GuestSeen()
    rest = tuple(entry for entry in guest.databases if entry.name != "MokListRT")
    empty = Database(name="MokListRT")
    return seen.model_copy(update={"guest": guest.model_copy(update={"databases": (*rest, empty)}), "booted": ""})


def _swapped(seen: SecureBootObservation) -> SecureBootObservation:
    def change(db: Database) -> Database:
        if not db.microsoft:
            return db.model_copy(
                update={"certificates": {**db.certificates, "00" * 32: "CN=UEFI CA,O=Microsoft Corporation"}}
            )
        kept = {key: text for key, text in db.certificates.items() if text not in db.microsoft}
        return db.model_copy(update={"certificates": kept})

    return _database(seen, change)


def _starts(seen: SecureBootObservation, role: str, **changes: object) -> SecureBootObservation:
    starts = tuple(start.model_copy(update=changes) if start.role == role else start for start in seen.starts)
    return seen.model_copy(update={"starts": starts})


def _came_to(came: Came, role: str = TAMPERED) -> Sabotage:
    return lambda seen: _starts(seen, role, came=came)


def _refused_by(refuses: str) -> Sabotage:
    return lambda seen: _starts(seen, TAMPERED, came=Came.REFUSED, by="another", refuses=refuses)


def _restless(refuses: str) -> Sabotage:
    return lambda seen: _starts(seen, TAMPERED, came=Came.REFUSED, refuses=refuses, restless=True)


def _only(role: str) -> Sabotage:
    return lambda seen: seen.model_copy(
        update={"starts": tuple(start for start in seen.starts if start.role == role)}
    )


def _unchanged(seen: SecureBootObservation) -> SecureBootObservation:
    def same(file: FileSeen) -> FileSeen:
        return file.model_copy(update={"after": file.before, "digest_after": file.digest_before})

    return seen.model_copy(update={"files": tuple(same(file) for file in seen.files)})


def _loads(seen: SecureBootObservation, **changes: object) -> SecureBootObservation:
    module = seen.module
    if module is None:
        module = ModuleSeen(
            way=seen.case, name="x", path="/x", before="0", after="1", intact=_TAKEN, tampered=_FORMAT
        )
    return seen.model_copy(update={"module": module.model_copy(update=changes)})


def _tampered_load(load: Load) -> Sabotage:
    return lambda seen: _loads(seen, tampered=load)


def _intact_load(load: Load) -> Sabotage:
    return lambda seen: _loads(seen, intact=load)


def _without_cmdline(seen: SecureBootObservation) -> SecureBootObservation:
    def change(image: UkiSeen) -> UkiSeen:
        return image.model_copy(
            update={"sections": {name: text for name, text in image.sections.items() if name != ".cmdline"}}
        )

    return seen.model_copy(update={"ukis": tuple(change(image) for image in seen.ukis)})
