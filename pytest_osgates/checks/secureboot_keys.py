"""Whose keys a machine trusts: those that it was given, and, where they are its own, those that the profile names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_osgates.checks.secureboot_model import (
    Database,
    GuestSeen,
    SecureBootObservation,
    SecureBootPolicy,
    microsofts,
)
from pytest_osgates.model import Finding, Severity

_UNPROVEN = Severity.UNPROVEN
_DATABASES = ("PK", "KEK", "db")
_MOK = "MokList"


def keys(seen: SecureBootObservation, guest: GuestSeen, policy: SecureBootPolicy) -> Iterable[Finding]:
    """The guest's firmware has the keys that it was given, Microsoft's as the profile says, and nobody else's."""
    enrolled = {entry.name: entry for entry in seen.enrolled}
    for name in _DATABASES:
        yield from _as_given(seen, name, guest.database(name), enrolled.get(name))
    yield from _microsofts(seen, guest, policy)
    if policy.keys == "machine":
        yield from _named(seen, enrolled, policy)
    yield from _mok(seen, guest, enrolled.get(_MOK), policy)


def _finding(
    seen: SecureBootObservation,
    rule: str,
    subject: str,
    what: str,
    wanted: str,
    severity: Severity = Severity.VIOLATION,
    hint: str = "",
) -> Finding:
    return Finding(
        rule=rule, subject=subject, seen=what, wanted=wanted, severity=severity, hint=hint, evidence=seen.records
    )


def _as_given(
    seen: SecureBootObservation, name: str, there: Database | None, given: Database | None
) -> Iterable[Finding]:
    if there is None or there.error or given is None or given.error:
        why = (there.error if there is not None else "") or (given.error if given is not None else "")
        yield _finding(seen, "keys", name, why or "cannot be read", "the keys that were enrolled", _UNPROVEN)
    elif (
        set(there.certificates) != set(given.certificates) or there.digests != given.digests or not there.certificates
    ):
        yield _finding(
            seen,
            "keys",
            name,
            f"the guest sees: {_names(there)}",
            f"what was enrolled: {_names(given)}",
            hint="does something enrol keys while it boots?",
        )


def _microsofts(seen: SecureBootObservation, guest: GuestSeen, policy: SecureBootPolicy) -> Iterable[Finding]:
    db = guest.database("db")
    if db is None or db.error:
        return
    if policy.with_microsoft and not db.microsoft:
        yield _finding(seen, "microsoft-absent", "db", f"in db: {_names(db)}", "Microsoft's certificates as well")
    for name in () if policy.with_microsoft else ("db", "KEK"):
        entry = guest.database(name)
        if entry is not None and entry.microsoft:
            yield _finding(seen, "microsoft-present", name, "; ".join(entry.microsoft), "none of Microsoft's")


def _named(
    seen: SecureBootObservation, enrolled: Mapping[str, Database], policy: SecureBootPolicy
) -> Iterable[Finding]:
    """Of a machine's own keys: each is one that the profile names, or, where Microsoft's are wanted, one of those or
    of the firmware vendor's; and those that it names are there."""
    expected = {entry.name: entry.certificates for entry in seen.expected}
    wanted_names = {"PK": policy.pk, "KEK": policy.kek, "db": policy.db, _MOK: policy.mok}
    if not any(wanted_names.values()) or any(
        files and not expected.get(name) for name, files in wanted_names.items()
    ):
        yield _finding(
            seen,
            "keys-unnamed",
            "keys",
            "nothing says whose keys the machine should have: whatever is there would do",
            "pk, kek, db or mok in [gate.secureboot]: certificates",
            _UNPROVEN,
        )
        return
    vendor = {entry.name: entry.certificates for entry in seen.vendor} if policy.with_microsoft else {}
    for name in (*_DATABASES, _MOK):
        entry = enrolled.get(name)
        named = expected.get(name, {})
        if entry is None:
            # PK, KEK and db that are not there are told by `_as_given`.
            if name == _MOK and named:
                yield _finding(
                    seen,
                    "keys-missing",
                    name,
                    "there is none",
                    f"in {name}: {_listed(named)}",
                    hint="the installer asks for it (mokutil --import), and MokManager enrols it at the next boot",
                )
            continue
        if entry.error:
            yield _finding(seen, "keys-unread", name, entry.error, f"in {name}: {_listed(named)}", _UNPROVEN)
            continue
        # One that the profile names replaces the vendor's, but Microsoft's stay beside it.
        allowed = {*named, *(microsofts(name) if policy.with_microsoft else ())}
        if not named:
            allowed |= set(vendor.get(name, {}))
        wanted = f"in {name}: {_listed(named) or 'no key of its own'}"
        if policy.with_microsoft and name != _MOK:
            wanted += "; Microsoft's" if named else "; Microsoft's and the firmware vendor's"
        if foreign := {key: text for key, text in entry.certificates.items() if key not in allowed}:
            yield _finding(
                seen,
                "keys-foreign",
                name,
                _listed(foreign),
                wanted,
                hint="whoever has its private key can sign what starts; name it, or do not enrol it",
            )
        if missing := {key: text for key, text in named.items() if key not in entry.certificates}:
            yield _finding(seen, "keys-missing", name, f"without {_listed(missing)}", wanted)
        if entry.digests:
            yield _finding(
                seen,
                "keys-digests",
                name,
                f"{entry.digests} entries that are no certificate",
                "no digest of a program, and no bare key: certificates alone say who may sign",
            )


def _mok(
    seen: SecureBootObservation, guest: GuestSeen, enrolled: Database | None, policy: SecureBootPolicy
) -> Iterable[Finding]:
    """shim's list, in the guest: what MokList has, and what the profile names."""
    named = next((entry.certificates for entry in seen.expected if entry.name == _MOK), {})
    if policy.keys != "machine" and ((enrolled is not None and enrolled.error) or (policy.mok and not named)):
        why = "" if enrolled is None else enrolled.error
        yield _finding(seen, "mok", _MOK, why or "not known", "the profile's Machine Owner Keys", _UNPROVEN)
    wanted = {**named, **(enrolled.certificates if enrolled is not None else {})}
    if not wanted:
        return
    there = guest.database("MokListRT")
    if there is None or there.error:
        why = "" if there is None else there.error
        yield _finding(seen, "mok", "MokListRT", why or "MokListRT cannot be read", _listed(wanted), _UNPROVEN)
    elif missing := {key: text for key, text in wanted.items() if key not in there.certificates}:
        yield _finding(seen, "mok", "MokListRT", f"without {_listed(missing)}", f"shim's list has {_listed(wanted)}")


def _names(entry: Database) -> str:
    more = f"; {entry.digests} entries that are no certificate" if entry.digests else ""
    return ("; ".join(sorted(entry.certificates.values())) or "no certificate") + more


def _listed(certificates: Mapping[str, str]) -> str:
    """Subjects, with the beginning of each fingerprint: a subject can be written by anybody."""
    return "; ".join(f"{text} ({key[:16]})" for key, text in sorted(certificates.items(), key=lambda item: item[1]))
