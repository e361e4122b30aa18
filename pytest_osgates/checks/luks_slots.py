"""One LUKS volume: its cipher, and every way to its key."""

from __future__ import annotations

from collections import Counter

from pytest_osgates.checks.luks_model import KeyslotSeen, LuksPolicy, PartitionSeen, TokenSeen, VolumeSeen
from pytest_osgates.model import Finding, Severity

# Random bytes have 8, with some hundredths for chance; what file systems and programs store has less.
RANDOM = 7.5
RECOVERY = "systemd-recovery"
TPM = "systemd-tpm2"
# Their keys have 256 random bits, so that systemd does not stretch them (cryptsetup_set_minimal_pbkdf()): a slot that
# was stretched has another key, whatever its token says (cryptsetup luksChangeKey lets the token stay).
_STRONG_KEYS = frozenset({RECOVERY, TPM, "systemd-fido2", "systemd-pkcs11"})
_UNSTRETCHED = 1000
_STRONG_BANKS = frozenset({"sha256", "sha384", "sha512"})
_HINT_KDF = "cryptsetup luksConvertKey --pbkdf argon2id, or where the disk is made: luksFormat --pbkdf argon2id"
_HINT_STRETCHED = (
    "enroll the key of its token anew: systemd-cryptenroll --wipe-slot=NUMBER with --recovery-key or --tpm2-device; "
    "a recovery key that is stretched on purpose: name its slot in recovery_slots"
)


def judge_volume(where: PartitionSeen, volume: VolumeSeen, policy: LuksPolicy) -> list[Finding]:
    """Everything about one volume. Of LUKS1 nothing more is said: all of it has to be made anew."""
    if volume.version != 2:
        return [
            Finding(
                rule="luks1",
                subject=where.subject,
                seen=f"LUKS{volume.version}, {volume.cipher}",
                wanted="LUKS2",
                hint="install with LUKS2; a disk that is there: cryptsetup convert --type luks2",
            )
        ]
    findings = [*_header(where, volume), *_data(where, volume, policy)]
    passphrases: list[KeyslotSeen] = []
    weak: set[int] = set()
    for slot in volume.keyslots:
        found = _slot(where, volume, slot, policy)
        findings += found
        if any(finding.severity is Severity.VIOLATION for finding in found):
            weak.add(slot.number)
        if slot.type == "luks2" and slot.volume and not _owner(volume, slot, policy):
            passphrases += [slot] if slot.number not in policy.recovery_slots else []
    findings += _numbers(where, passphrases, weak, policy)
    findings += _recovery(where, volume, policy)
    return [*findings, *_tokens(where, volume, policy)]


def _header(where: PartitionSeen, volume: VolumeSeen) -> list[Finding]:
    findings = [
        Finding(
            rule="header-copies",
            subject=where.subject,
            seen=fault,
            wanted="two valid copies of the header that say the same",
            hint="cryptsetup repair; a stale copy may still have a keyslot that was removed",
        )
        for fault in volume.faults
    ]
    aside = [segment.name for segment in volume.segments if not segment.in_use]
    if volume.requirements or aside:
        findings.append(
            Finding(
                rule="unfinished",
                subject=where.subject,
                seen=f"requirements: {', '.join(volume.requirements) or 'none'}; segments kept aside: {len(aside)}",
                wanted="a volume that is encrypted to its end, and needs nothing special of who opens it",
                hint="let cryptsetup reencrypt end before the disk ships",
            )
        )
    return findings


def _data(where: PartitionSeen, volume: VolumeSeen, policy: LuksPolicy) -> list[Finding]:
    findings = []
    wanted = f"encrypted by {' or '.join(policy.ciphers)}"
    for segment in volume.segments:
        if not segment.in_use:
            continue
        subject = f"{where.subject}, segment {segment.name}"
        if segment.type != "crypt":
            findings.append(Finding(rule="segment", subject=subject, seen=f"type {segment.type}", wanted=wanted))
            continue
        if segment.cipher not in policy.ciphers:
            findings.append(Finding(rule="cipher", subject=subject, seen=segment.cipher, wanted=wanted))
        if segment.integrity and set(segment.holds) == {"DM_integrity"} and segment.blocks:
            # dm-integrity keeps a superblock and a journal of its own between the encrypted sectors: what of it is
            # that, and what an earlier system left, is not told apart here.
            findings.append(
                Finding(
                    rule="payload-unsampled",
                    subject=subject,
                    seen=f"authenticated by {segment.integrity}: not all that is stored is encrypted data",
                    wanted="stored bytes that cannot be told from random ones",
                    hint="a volume without --integrity, or look for what is left in it by other means",
                    severity=Severity.UNPROVEN,
                )
            )
        elif segment.holds or (segment.blocks and segment.entropy < RANDOM):
            what = f"a signature of {', '.join(segment.holds)}" if segment.holds else "blocks that are not random"
            findings.append(
                Finding(
                    rule="payload",
                    subject=subject,
                    seen=f"{what} (least entropy of {segment.blocks} blocks: {segment.entropy:.2f} bits a byte)",
                    wanted="stored bytes that cannot be told from random ones",
                    hint="fill the partition with zeros or random bytes before it is formatted",
                )
            )
        elif not segment.blocks:
            findings.append(
                Finding(
                    rule="payload-unseen",
                    subject=subject,
                    seen="nothing but zeros",
                    wanted="an installed system, encrypted",
                    severity=Severity.UNPROVEN,
                )
            )
    if volume.key_size < policy.key_size:
        findings.append(
            Finding(
                rule="key-size",
                subject=where.subject,
                seen=f"{volume.key_size} bits",
                wanted=f"at least {policy.key_size} bits (XTS splits them in two)",
            )
        )
    findings += [
        Finding(
            rule="spare-data",
            subject=where.subject,
            seen=f"bytes at {at} of the partition, outside of all segments",
            wanted="nothing that is not encrypted",
        )
        for at in volume.spare
    ]
    return findings


def _claims(volume: VolumeSeen, slot: KeyslotSeen) -> list[TokenSeen]:
    return [token for token in volume.tokens if slot.number in token.keyslots]


def _claimant(volume: VolumeSeen, slot: KeyslotSeen, policy: LuksPolicy) -> TokenSeen | None:
    """The token that says of this slot alone that its own random key is in it; none where two say so."""
    claims = _claims(volume, slot)
    if len(claims) != 1 or len(claims[0].keyslots) != 1:
        return None
    token = claims[0]
    return token if token.type in _STRONG_KEYS and token.type in policy.tokens else None


def _owner(volume: VolumeSeen, slot: KeyslotSeen, policy: LuksPolicy) -> TokenSeen | None:
    """The token whose own random key is in this slot. It is not believed of a slot that was stretched: that is a
    passphrase, which counts as one."""
    kdf = slot.kdf
    minimal = kdf is not None and kdf.type == "pbkdf2" and kdf.iterations <= _UNSTRETCHED
    return _claimant(volume, slot, policy) if minimal else None


def _slot(where: PartitionSeen, volume: VolumeSeen, slot: KeyslotSeen, policy: LuksPolicy) -> list[Finding]:
    subject = f"{where.subject}, keyslot {slot.number}"
    if slot.type != "luks2" or slot.kdf is None:
        return [
            Finding(
                rule="keyslot-type",
                subject=subject,
                seen=slot.type,
                wanted="luks2",
                severity=Severity.UNPROVEN,
            )
        ]
    findings = []
    if slot.cipher not in policy.ciphers or slot.cipher_bits < policy.key_size:
        findings.append(
            Finding(
                rule="keyslot-cipher",
                subject=subject,
                seen=f"{slot.cipher}, {slot.cipher_bits} bits",
                wanted=f"{' or '.join(policy.ciphers)}, {policy.key_size} bits, as for the data",
            )
        )
    if not slot.volume:
        findings.append(
            Finding(
                rule="unbound-slot",
                subject=subject,
                seen="bound to no segment: what its key is cannot be seen, and it may be the volume's",
                wanted="only keyslots of the volume",
                hint="cryptsetup luksKillSlot",
                severity=Severity.UNPROVEN,
            )
        )
    owner, claimant = _owner(volume, slot, policy), _claimant(volume, slot, policy)
    if owner is not None:
        findings.append(_strong_key(subject, slot, owner))
    else:
        findings += _kdf(subject, slot, policy, claimant)
    return [*findings, *_guesses(subject, volume, slot, policy)]


def _strong_key(subject: str, slot: KeyslotSeen, token: TokenSeen) -> Finding:
    kdf = slot.kdf.type if slot.kdf is not None else "none"
    return Finding(
        rule="random-key",
        subject=subject,
        seen=f"{kdf}, and a token of the type {token.type} names it",
        wanted="the 256 random bits that systemd-cryptenroll makes; the disk cannot show them",
        severity=Severity.REMARK,
    )


def _kdf(subject: str, slot: KeyslotSeen, policy: LuksPolicy, claimant: TokenSeen | None) -> list[Finding]:
    kdf = slot.kdf
    hint = _HINT_KDF if claimant is None else _HINT_STRETCHED
    if kdf is None or kdf.type != "argon2id":
        seen = "none" if kdf is None else f"{kdf.type}, {kdf.iterations or kdf.time} iterations"
        return [Finding(rule="keyslot-kdf", subject=subject, seen=seen, wanted="argon2id", hint=hint)]
    findings = [
        Finding(
            rule=f"keyslot-{what}",
            subject=subject,
            seen=f"argon2id with {have} {unit}".rstrip(),
            wanted=f"at least {least} {unit}".rstrip(),
            hint=hint,
        )
        for what, have, least, unit in (
            ("memory", kdf.memory, policy.memory_kib, "KiB"),
            ("time", kdf.time, policy.time, "iterations"),
        )
        if have < least
    ]
    if claimant is not None:
        findings.append(
            Finding(
                rule="stretched-key",
                subject=subject,
                seen=f"argon2id, and a token of the type {claimant.type} names it",
                wanted="known: it counts as a passphrase, for systemd-cryptenroll does not stretch its own keys",
                hint=_HINT_STRETCHED,
                severity=Severity.REMARK,
            )
        )
    return findings


def _guesses(subject: str, volume: VolumeSeen, slot: KeyslotSeen, policy: LuksPolicy) -> list[Finding]:
    tried = {guess.passphrase: guess for guess in volume.guesses if guess.keyslot == slot.number}
    findings = []
    for phrase in policy.refused:
        guess = tried.get(phrase)
        shown = f"the passphrase {phrase!r}" if phrase else "an empty passphrase"
        if guess is not None and guess.opened:
            findings.append(
                Finding(
                    rule="guessable",
                    subject=subject,
                    seen=f"{shown} opens it",
                    wanted="a passphrase that nobody knows",
                    hint="systemd-cryptenroll --wipe-slot=empty, or cryptsetup luksKillSlot",
                )
            )
        elif slot.volume and (guess is None or guess.opened is None):
            why = guess.error if guess is not None else "it was not tried in this run"
            findings.append(
                Finding(
                    rule="untried",
                    subject=subject,
                    seen=f"{shown}: {why}",
                    wanted="every passphrase of `refused` tried on every keyslot",
                    severity=Severity.UNPROVEN,
                )
            )
    return findings


def _numbers(
    where: PartitionSeen, passphrases: list[KeyslotSeen], weak: set[int], policy: LuksPolicy
) -> list[Finding]:
    """One that is a finding by itself needs no second one for being there."""
    sound = [slot.number for slot in passphrases if slot.number not in weak]
    if len(sound) > policy.passphrase_slots:
        return [
            Finding(
                rule="extra-slot",
                subject=where.subject,
                seen=f"{len(sound)} keyslots for passphrases: {', '.join(map(str, sound))}",
                wanted=f"at most {policy.passphrase_slots}",
                hint="cryptsetup luksKillSlot, or name it in recovery_slots",
            )
        ]
    if policy.passphrase_slots and not any(slot.helps for slot in passphrases):
        return [
            Finding(
                rule="no-passphrase",
                subject=where.subject,
                seen="no keyslot for a passphrase" + (" that is tried and was not wiped" if passphrases else ""),
                wanted="one, for when the TPM refuses",
                hint="systemd-cryptenroll --password",
            )
        ]
    return []


def _recovery(where: PartitionSeen, volume: VolumeSeen, policy: LuksPolicy) -> list[Finding]:
    if not policy.recovery:
        return []
    there = {slot.number for slot in volume.keyslots if slot.helps}
    named = {
        slot.number
        for slot in volume.keyslots
        if slot.number in there & set(policy.recovery_slots)
        # What a TPM opens is no help once that refuses.
        and all(token.type == RECOVERY for token in _claims(volume, slot))
    }
    by_token = {
        slot.number
        for slot in volume.keyslots
        if slot.number in there and (owner := _owner(volume, slot, policy)) is not None and owner.type == RECOVERY
    }
    more = sorted(by_token - named)
    if len(more) > 1:
        return [
            Finding(
                rule="extra-slot",
                subject=where.subject,
                seen=f"{len(more)} keyslots for recovery keys: {', '.join(map(str, more))}",
                wanted="one: nobody who installs it is shown two",
                hint="cryptsetup luksKillSlot, or name them in recovery_slots",
            )
        ]
    if named | by_token:
        return []
    stretched = [
        str(slot.number)
        for slot in volume.keyslots
        if (token := _claimant(volume, slot, policy)) is not None
        and token.type == RECOVERY
        and _owner(volume, slot, policy) is None
    ]
    return [
        Finding(
            rule="no-recovery",
            subject=where.subject,
            seen="no keyslot with a recovery key"
            + (f"; that of keyslot {', '.join(stretched)} is stretched, as a passphrase is" if stretched else ""),
            wanted=f"a token of the type {RECOVERY}"
            + (f", or keyslot {' or '.join(map(str, policy.recovery_slots))}" if policy.recovery_slots else ""),
            hint="systemd-cryptenroll --recovery-key, or name the slot in recovery_slots",
        )
    ]


def _tokens(where: PartitionSeen, volume: VolumeSeen, policy: LuksPolicy) -> list[Finding]:
    findings = []
    shared = Counter(number for token in volume.tokens for number in token.keyslots)
    for token in volume.tokens:
        subject = f"{where.subject}, token {token.number}"
        if token.type not in policy.tokens and not (token.type == TPM and policy.tpm == "forbidden"):
            findings.append(
                Finding(
                    rule="unknown-token",
                    subject=subject,
                    seen=token.type,
                    wanted=f"only {', '.join(policy.tokens) or 'none'}",
                    hint="it opens the disk in a way that the profile does not speak of; name it in tokens",
                )
            )
        elif len(token.keyslots) != 1 or shared[token.keyslots[0]] > 1:
            findings.append(
                Finding(
                    rule="token-keyslots",
                    subject=subject,
                    seen=f"keyslots {', '.join(map(str, token.keyslots)) or 'none'}",
                    wanted="one keyslot that no other token names",
                    severity=Severity.VIOLATION if token.keyslots else Severity.REMARK,
                )
            )
        if token.type == TPM:
            findings += _tpm(subject, token, policy)
    if policy.tpm == "required" and not any(token.type == TPM and token.keyslots for token in volume.tokens):
        findings.append(
            Finding(
                rule="no-tpm",
                subject=where.subject,
                seen=f"no token of the type {TPM}",
                wanted="the TPM opens it as long as nothing was changed",
                hint="systemd-cryptenroll --tpm2-device=auto --tpm2-pcrs=...",
            )
        )
    return findings


def _tpm(subject: str, token: TokenSeen, policy: LuksPolicy) -> list[Finding]:
    if policy.tpm == "forbidden":
        return [
            Finding(rule="tpm-forbidden", subject=subject, seen=TPM, wanted="no TPM: only who knows a passphrase")
        ]
    bound = set(token.pcrs) | set(token.signed_pcrs)
    missing = [pcr for pcr in policy.pcrs if pcr not in bound]
    findings = []
    if missing and token.pcrlock:
        findings.append(
            Finding(
                rule="tpm-pcrlock",
                subject=subject,
                seen="PCRs are left to a policy of systemd-pcrlock, which is not on this disk in the clear",
                wanted=f"bound to the PCRs {', '.join(map(str, policy.pcrs))}",
                severity=Severity.UNPROVEN,
            )
        )
    elif missing:
        findings.append(
            Finding(
                rule="tpm-pcrs",
                subject=subject,
                seen=f"bound to {'the PCRs ' + ', '.join(map(str, sorted(bound))) if bound else 'no PCR'}",
                wanted=f"bound at least to {', '.join(map(str, policy.pcrs))}",
                hint=f"systemd-cryptenroll --wipe-slot=tpm2 --tpm2-pcrs={'+'.join(map(str, policy.pcrs))}",
            )
        )
    if bound and token.bank not in _STRONG_BANKS:
        findings.append(
            Finding(
                rule="tpm-bank",
                subject=subject,
                seen=f"the bank {token.bank}" if token.bank else "no bank: it is chosen anew at each boot",
                wanted="sha256, sha384 or sha512",
            )
        )
    return findings
