"""Gate `secureboot`: with the profile's keys the machine starts what was signed, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pytest_osgates.checks.emulated import panic
from pytest_osgates.checks.secureboot_controls import controls
from pytest_osgates.checks.secureboot_keys import keys
from pytest_osgates.checks.secureboot_model import (
    GUEST,
    MODULES,
    TAMPERED,
    TWIN,
    UKI_ROW,
    Came,
    GuestSeen,
    Load,
    SecureBootObservation,
    SecureBootPolicy,
    Stage,
    StartSeen,
    UkiSeen,
    Way,
    module_refusals,
    tamper_of,
)
from pytest_osgates.model import Finding, Gate, Severity, State

_UNPROVEN = Severity.UNPROVEN
_LEVELS = ("none", "integrity", "confidentiality")
_SIGNS = "signed by a key that the firmware, shim or the kernel knows"


def judge(seen: SecureBootObservation, policy: SecureBootPolicy) -> list[Finding]:
    """One row."""
    if seen.case not in policy.rows():
        return [_finding(seen, "unknown-row", f"a row called {seen.case!r}", "a row of the profile", _UNPROVEN)]
    findings = []
    if seen.error:
        findings.append(_finding(seen, "not-observed", seen.error, "the row, gone through to its end", _UNPROVEN))
    tamper = tamper_of(seen.case)
    if tamper is not None:
        findings += _refused(seen, policy, *tamper)
    elif seen.case == UKI_ROW:
        findings += _ukis(seen, policy)
    elif seen.booted:
        findings.append(_not_booted(seen))
    elif seen.case == GUEST:
        findings += _guest(seen, policy)
    else:
        findings += _module(seen)
    return findings


def _finding(
    seen: SecureBootObservation,
    rule: str,
    what: str,
    wanted: str,
    severity: Severity = Severity.VIOLATION,
    *,
    subject: str = "",
    hint: str = "",
    reason: str = "",
) -> Finding:
    records = next((start.records for start in seen.starts if start.records), seen.records)
    return Finding(
        rule=rule,
        subject=subject or seen.case,
        seen=what,
        wanted=wanted,
        severity=severity,
        hint=hint,
        reason=reason,
        evidence=records,
    )


def _not_booted(seen: SecureBootObservation) -> Finding:
    """That it does not boot is for the row `guest` to say, where it is known; to the others it is a hindrance.
    Without its boot entries, it may be for the want of them."""
    excuse = panic(seen.accelerator, seen.booted, *seen.consoles.values())
    known = seen.failed and seen.case == GUEST and seen.entries and not excuse
    severity = Severity.VIOLATION if known else _UNPROVEN
    hint = excuse if seen.entries else "lay variables.fd and the TPM that it was installed with beside the disk"
    wanted = "a boot with these keys, to its ready target"
    return _finding(seen, "not-booted", seen.booted, wanted, severity, hint=hint)


# -- what the guest says ------------------------------------------------------------------------------------------


def _guest(seen: SecureBootObservation, policy: SecureBootPolicy) -> Iterable[Finding]:
    guest = seen.guest
    if guest is None:
        yield _finding(seen, "not-asked", "nothing", "the guest's word on Secure Boot and lockdown", _UNPROVEN)
        return
    yield from _variable(seen, "secure-boot", "SecureBoot", guest.secure_boot, 1)
    yield from _variable(seen, "setup-mode", "SetupMode", guest.setup_mode, 0)
    yield from _lockdown(seen, guest, policy)
    yield from _sig_enforce(seen, guest, policy)
    yield from keys(seen, guest, policy)


def _variable(seen: SecureBootObservation, rule: str, name: str, value: int | None, wanted: int) -> Iterable[Finding]:
    if value is None:
        yield _finding(
            seen, rule, f"{name} cannot be read from efivarfs", f"{name}={wanted}", _UNPROVEN, subject=name
        )
    elif value != wanted:
        yield _finding(seen, rule, f"{name}={value}", f"{name}={wanted}", subject=name)


def level(text: str) -> str:
    """The lockdown that is in force, by /sys/kernel/security/lockdown; empty: that does not say."""
    match = re.fullmatch(r"(?:\w+ )*\[(\w+)\](?: \w+)*\s*", text)
    return match[1] if match is not None and match[1] in _LEVELS else ""


def _lockdown(seen: SecureBootObservation, guest: GuestSeen, policy: SecureBootPolicy) -> Iterable[Finding]:
    wanted = f"{policy.lockdown}, or more"
    found = level(guest.lockdown)
    if found:
        if _LEVELS.index(found) < _LEVELS.index(policy.lockdown):
            yield _finding(
                seen,
                "lockdown",
                found,
                wanted,
                subject="lockdown",
                hint=f"lockdown={policy.lockdown} on the kernel's command line",
            )
    elif guest.lsm and "lockdown" not in guest.lsm.split(","):
        yield _finding(seen, "lockdown", f"the kernel has no lockdown: {guest.lsm}", wanted, subject="lockdown")
    else:
        yield _finding(
            seen,
            "lockdown",
            "/sys/kernel/security/lockdown cannot be read",
            wanted,
            _UNPROVEN,
            subject="lockdown",
        )


def _sig_enforce(seen: SecureBootObservation, guest: GuestSeen, policy: SecureBootPolicy) -> Iterable[Finding]:
    subject, wanted = "module.sig_enforce", "Y"
    if guest.sig_enforce == "Y":
        if policy.accept_sig_enforce.strip():
            yield _finding(
                seen, "unused-acceptance", "it is Y", "no acceptance without need", Severity.REMARK, subject=subject
            )
    elif guest.sig_enforce == "N":
        reason = policy.accept_sig_enforce.strip()
        yield _finding(
            seen,
            "sig-enforce",
            "N",
            wanted,
            Severity.ACCEPTED if reason else Severity.VIOLATION,
            subject=subject,
            hint="module.sig_enforce=1 on the kernel's command line",
            reason=reason,
        )
    else:
        yield _finding(
            seen, "sig-enforce-unread", "/sys/module/module/parameters has none", wanted, _UNPROVEN, subject=subject
        )


# -- what must not start ------------------------------------------------------------------------------------------


def _refused(seen: SecureBootObservation, policy: SecureBootPolicy, stage: Stage, way: Way) -> Iterable[Finding]:
    if not seen.files:
        yield _finding(
            seen,
            "no-file",
            f"no program of the link {stage} on a file system that can be read",
            "the program, to be changed",
            _UNPROVEN,
            hint=f"files = {{ {stage} = [...] }} in [gate.secureboot] says where it is",
        )
        return
    bare = [file for file in seen.files if not file.signatures]
    for file in bare:
        yield _finding(
            seen, "not-signed", f"{file.name} has no signature", _SIGNS, subject=f"{seen.case}: {file.name}"
        )
    if bare:
        return
    if not _applied(seen, way):
        made = "; ".join(f"{file.name}: {file.before[:12]} -> {file.after[:12]}" for file in seen.files)
        yield _finding(seen, "not-applied", made, f"{way}: {_made_by(way)}", _UNPROVEN)
    tampered = [start for start in seen.starts if start.role == TAMPERED]
    if len(tampered) != 1:
        yield _finding(seen, "no-boot", f"{len(tampered)} boots", "one boot of the tampered machine", _UNPROVEN)
        return
    found = list(_came(seen, policy, stage, tampered[0]))
    yield from found
    if not any(finding.severity is Severity.VIOLATION for finding in found):
        yield from _twin(seen, way)


def _applied(seen: SecureBootObservation, way: Way) -> bool:
    digests = {file.digest_after for file in seen.files}
    tampered = next((start for start in seen.starts if start.role == TAMPERED), None)
    if way is Way.FORBIDDEN:
        same = all(file.before == file.after for file in seen.files)
        return same and tampered is not None and digests <= set(tampered.dbx)
    changed = all(file.before != file.after for file in seen.files)
    # A signature of another is about the same bytes.
    if way is Way.WRONG:
        changed = changed and all(file.digest_before == file.digest_after for file in seen.files)
    else:
        changed = changed and all(file.digest_before != file.digest_after for file in seen.files)
    return changed and tampered is not None and not tampered.db and not tampered.dbx


def _made_by(way: Way) -> str:
    return {
        Way.UNSIGNED: "each program without a signature, and nobody's hash in db",
        Way.WRONG: "each program signed by a key of this run's, over the same digest",
        Way.CHANGED: "each program with another byte below its signature",
        Way.FORBIDDEN: "each program as it was shipped, its hash in dbx",
    }[way]


def _came(seen: SecureBootObservation, policy: SecureBootPolicy, stage: Stage, start: StartSeen) -> Iterable[Finding]:
    wanted = f"refused: {stage} is {tamper_text(seen.case)}"
    match start.came:
        case Came.STARTED if another := _another(seen, policy, stage, start):
            yield _finding(
                seen,
                "started-another",
                f"a kernel runs after {start.at:.0f} s; the firmware started {another}, which was not touched",
                wanted,
                _UNPROVEN,
                hint=f"files = {{ {stage} = [...] }} in [gate.secureboot] says which program is to be spoilt",
            )
        case Came.STARTED:
            yield _finding(
                seen,
                "started",
                f"a kernel runs after {start.at:.0f} s{f', although: {start.line}' if start.line else ''}",
                wanted,
                hint="who starts this program does not verify it",
            )
        case Came.SILENT:
            yield _finding(
                seen,
                "timeout",
                f"neither a refusal nor a kernel after {start.at:.0f} s",
                wanted,
                _UNPROVEN,
                hint="pictures are not read: GRUB's words on gfxterm are seen with terminal_output console or serial",
            )
        case Came.ENDED:
            yield _finding(seen, "no-word", f"it ended: {start.line}", wanted, _UNPROVEN)
        case Came.REFUSED:
            right = "first" if stage is policy.chain[0] else "later"
            if start.refuses != right:
                yield _finding(
                    seen,
                    "refused-by-another",
                    f"{start.by}: {start.line}",
                    f"a refusal by whoever starts {stage}: it did not come so far",
                    _UNPROVEN,
                )
            elif _started(seen, policy, stage, start):
                yield _finding(
                    seen,
                    "refused-and-started",
                    f"{start.line}; and the firmware said that it starts {start.loaded}",
                    f"{wanted}, and not started",
                    _UNPROVEN,
                )
            elif start.restless:
                yield _finding(
                    seen,
                    "restless",
                    f"{start.line}; the deadline came less than settle_s after the last sign of life",
                    f"{wanted}, and then nothing for settle_s: a kernel may be on its way",
                    _UNPROVEN,
                    hint="raise deadline_s in [gate.secureboot]",
                )


def _another(seen: SecureBootObservation, policy: SecureBootPolicy, stage: Stage, start: StartSeen) -> str:
    """The program that the firmware started, if it is none that was spoilt; of later links it says nothing."""
    if stage is not policy.chain[0] or not start.loaded:
        return ""
    return "" if start.loaded.lower() in _spoilt(seen) else start.loaded


def _started(seen: SecureBootObservation, policy: SecureBootPolicy, stage: Stage, start: StartSeen) -> bool:
    """Whether the firmware says that it starts a program that was spoilt: the refusal is about another one."""
    return stage is policy.chain[0] and start.loaded.lower() in _spoilt(seen)


def _spoilt(seen: SecureBootObservation) -> set[str]:
    return {file.name.partition(":")[2].lower() for file in seen.files}


def tamper_text(case: str) -> str:
    """What is done in a row, in words."""
    tamper = tamper_of(case)
    return (
        ""
        if tamper is None
        else {
            Way.UNSIGNED: "not signed",
            Way.WRONG: "signed by a key that nobody trusts",
            Way.CHANGED: "not what was signed",
            Way.FORBIDDEN: "forbidden by dbx",
        }[tamper[1]]
    )


def _twin(seen: SecureBootObservation, way: Way) -> Iterable[Finding]:
    """The same boot, but for the one thing that was wrong."""
    how = "another hash in dbx" if way is Way.FORBIDDEN else "the hashes of the same files in db"
    wanted = f"a kernel, with {how}: else the refusal may have another reason"
    twins = [start for start in seen.starts if start.role == TWIN]
    if len(twins) != 1:
        yield _finding(seen, "twin", f"{len(twins)} boots", wanted, _UNPROVEN)
        return
    twin, digests = twins[0], {file.digest_after for file in seen.files}
    differs = bool(twin.dbx) and not digests & set(twin.dbx) if way is Way.FORBIDDEN else digests <= set(twin.db)
    if not differs:
        yield _finding(seen, "twin", "it was booted with other variables", wanted, _UNPROVEN)
    elif twin.came is not Came.STARTED:
        yield _finding(seen, "twin", f"{twin.came} after {twin.at:.0f} s: {twin.line}", wanted, _UNPROVEN)


# -- modules ------------------------------------------------------------------------------------------------------


def _module(seen: SecureBootObservation) -> Iterable[Finding]:
    module = seen.module
    if module is None:
        yield _finding(
            seen,
            "no-module",
            "none of the modules that are tried is there, unused and signed",
            "a module to be loaded",
            _UNPROVEN,
            hint="modules = [...] in [gate.secureboot]",
        )
        return
    if module.before == module.after or module.way != seen.case:
        what = f"{module.way}: {module.before[:12]} -> {module.after[:12]}"
        yield _finding(seen, "not-applied", what, "its signature spoilt as the row says", _UNPROVEN)
    if module.tampered.loaded or module.tampered.status == 0:
        yield _finding(
            seen,
            "module-loaded",
            f"the kernel took {module.name}: {_said(module.tampered)}",
            "Key was rejected by service, or kernel_lockdown(7)'s refusal",
            hint="module.sig_enforce=1 or lockdown=integrity on the kernel's command line",
        )
        return
    if not refusal_of(module.tampered, module.way):
        yield _finding(
            seen,
            "other-reason",
            _said(module.tampered),
            "a refusal because of what the row did to its signature",
            _UNPROVEN,
        )
    if module.intact.status != 0 or not module.intact.loaded:
        yield _finding(
            seen,
            "twin",
            f"{module.name} as it was shipped is not taken either: {_said(module.intact)}",
            "the shipped module loads, in the same way: else the refusal may have another reason",
            _UNPROVEN,
        )


def refusal_of(load: Load, way: str) -> str:
    """What in an insmod's end is the refusal that the row `way` is about; empty: nothing is."""
    for row in module_refusals():
        if way not in row.ways:
            continue
        if re.search(row.error, load.said) and (not row.log or any(re.search(row.log, line) for line in load.log)):
            return row.name
    return ""


def _said(load: Load) -> str:
    return f"status {load.status}: {load.said}" + (f" ({load.log[-1]})" if load.log else "")


# -- unified kernel images ----------------------------------------------------------------------------------------


def _ukis(seen: SecureBootObservation, policy: SecureBootPolicy) -> Iterable[Finding]:
    if not seen.ukis:
        yield _finding(seen, "no-file", "no unified kernel image was found", "at least one", _UNPROVEN)
    for image in seen.ukis:
        if image.error:
            yield _finding(seen, "uki-unread", image.error, "a unified kernel image", _UNPROVEN, subject=image.name)
            continue
        if ".profile" in image.sections:
            yield _finding(
                seen,
                "uki-profiles",
                "it has profiles (.profile), and load options choose one: which sections are used is not known",
                "an image without profiles, or one image for each",
                _UNPROVEN,
                subject=image.name,
            )
        if ".cmdline" not in image.sections:
            yield _finding(
                seen,
                "uki-cmdline",
                "no .cmdline",
                "a command line below the signature: without one, any is taken",
                subject=image.name,
            )
        yield from _pcr_signature(seen, image, policy)


def _pcr_signature(seen: SecureBootObservation, image: UkiSeen, policy: SecureBootPolicy) -> Iterable[Finding]:
    """A signed policy for PCR 11 that is not this image's own unlocks nothing, or something else."""
    if ".pcrsig" not in image.sections:
        if policy.pcr_signature:
            yield _finding(
                seen,
                "uki-pcrsig",
                "no .pcrsig",
                "signed policies for PCR 11 (systemd-measure(1))",
                subject=image.name,
            )
        return
    wanted = "each entry about PCR 11 as this image's sections are measured, signed by the key in .pcrpkey"
    bad = [
        f"PCRs {', '.join(map(str, entry.pcrs))}: "
        + ("not of this image" if not entry.policy_fits else "not signed by .pcrpkey")
        for entry in image.signed
        if not (entry.policy_fits and entry.signature_fits)
    ]
    if bad or not image.signed:
        yield _finding(seen, "uki-pcrsig", "; ".join(bad) or "an empty .pcrsig", wanted, subject=image.name)


def compare(before: SecureBootObservation, now: SecureBootObservation) -> list[str]:
    """Boots that came to something else, and what the guest says otherwise."""
    told = [[f"{start.role}: {start.came}" for start in seen.starts] for seen in (before, now)]
    found = [] if told[0] == told[1] else [f"{', '.join(told[0]) or 'no boot'} -> {', '.join(told[1]) or 'no boot'}"]
    if before.guest is not None and now.guest is not None:
        for name in ("secure_boot", "setup_mode", "lockdown", "sig_enforce", "kernel"):
            old, new = getattr(before.guest, name), getattr(now.guest, name)
            if old != new:
                found.append(f"{name}: {old} -> {new}")
    return found


GATE = Gate(
    name="secureboot",
    title="with Secure Boot on, nothing starts that is not signed by a key that the profile trusts",
    states=(State.LIVE, State.INSTALLED),
    observation=SecureBootObservation,
    policy=SecureBootPolicy,
    judge=judge,
    controls=controls,
    cases=lambda policy, firmwares: policy.rows(),
    machine_of_case=lambda case: GUEST if case in (GUEST, *MODULES) else "",
    compare=compare,
)

__all__ = ["GATE", "MODULES", "judge", "level", "refusal_of", "tamper_text"]
