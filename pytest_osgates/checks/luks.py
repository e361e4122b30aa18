"""Gate `luks`: an installed disk gives nothing away without its passphrase. Read from the disk; nothing is booted."""

from __future__ import annotations

import json
from collections.abc import Callable

from pytest_osgates.checks.luks_model import (
    NAMES,
    BootFilesSeen,
    FileSeen,
    GapSeen,
    Guess,
    KdfSeen,
    KeyslotSeen,
    LuksObservation,
    LuksPolicy,
    PartitionSeen,
    SegmentSeen,
    TokenSeen,
    VolumeSeen,
)
from pytest_osgates.checks.luks_partitions import LUKS, judge_partitions
from pytest_osgates.checks.luks_slots import RECOVERY, TPM, judge_volume
from pytest_osgates.model import Control, Finding, Gate, Severity, State

# Numbers that no disk has, so that what a control adds was not there before.
_NUMBER = 999
_KEY = FileSeen(container="", path="/osgates-control", size=64, random=True)


def judge(seen: LuksObservation, policy: LuksPolicy) -> list[Finding]:
    """What can be read without a passphrase, then every volume."""
    findings = judge_partitions(seen, policy)
    for partition in seen.partitions:
        if partition.volume is not None:
            findings += judge_volume(partition, partition.volume, policy)
    return findings


def baseline(seen: LuksObservation, policy: LuksPolicy) -> str:
    """Acceptances for plain partitions and for files that look like keys. A volume is mended, not accepted."""
    blocks = []
    for finding in judge(seen, policy):
        if finding.severity is not Severity.VIOLATION:
            continue
        if finding.rule == "plaintext-partition":
            part = next(part for part in seen.partitions if part.subject == finding.subject)
            kind = json.dumps(NAMES.get(part.type, part.type))
            blocks.append(
                f'[[gate.luks.accept_plaintext]]\ntype = {kind}\nholds = {json.dumps(part.holds)}\nreason = ""\n'
            )
        elif finding.rule in {"key-in-initrd", "key-on-esp", "crypttab-key", "parameter-key"}:
            blocks.append(f'[[gate.luks.accept_keys]]\npath = {json.dumps(finding.subject)}\nreason = ""\n')
    return "\n".join(dict.fromkeys(blocks))


def compare(before: LuksObservation, now: LuksObservation) -> list[str]:
    """Partitions and keyslots that came, went or changed."""
    facts = [_facts(before), _facts(now)]
    lines = []
    for subject in dict.fromkeys((*facts[0], *facts[1])):
        then, since = (side.get(subject, "not there") for side in facts)
        if then != since:
            lines.append(f"{subject}: {then} -> {since}")
    return lines


def _facts(seen: LuksObservation) -> dict[str, str]:
    found = {}
    for part in seen.partitions:
        volume = part.volume
        version = f" {volume.version} {volume.cipher} {volume.key_size}" if volume is not None else ""
        found[part.subject] = f"{part.holds}{version}, {part.type_name}, {part.size} bytes at {part.start}"
        for slot in () if volume is None else volume.keyslots:
            kdf = slot.kdf
            how = "" if kdf is None else f"{kdf.type} {kdf.memory} KiB {kdf.time or kdf.iterations}"
            found[f"{part.subject}, keyslot {slot.number}"] = f"{slot.type} {slot.cipher} {how}"
        for token in () if volume is None else volume.tokens:
            pcrs = ", ".join(map(str, token.pcrs))
            found[f"{part.subject}, token {token.number}"] = f"{token.type} {token.keyslots} PCRs [{pcrs}]"
    return found


Sabotage = Callable[[LuksObservation], LuksObservation]


def controls(seen: LuksObservation, policy: LuksPolicy) -> tuple[Control[LuksObservation], ...]:
    """Made from what is there and what is demanded: a volume that is weakened in each way that counts."""
    made = [
        Control("another file system in the clear", _with_partition("ext4"), "plaintext-partition", _subject()),
        Control("swap in the clear", _with_partition("swap"), "clear-swap", _subject()),
        Control("no partition", _without_partitions, "no-encryption", "disk"),
        Control(
            "data in no partition", _with_gap, "unpartitioned-data", f"unpartitioned space at {seen.disk.capacity}"
        ),
    ]
    if policy.initrd == "plain":
        made.append(
            Control("no initrd", _without_boot_files, "initrd-missing", "initrd", Severity.UNPROVEN),
        )
    looked = next((number for number, part in enumerate(seen.partitions) if part.boot is not None), None)
    if looked is not None:
        made.append(Control("a key on the ESP", _with_file(looked, _KEY), "key-on-esp", _KEY.path))
        inside = _KEY.model_copy(update={"container": "/control"})
        made.append(
            Control("a key in the initrd", _with_file(looked, inside), "key-in-initrd", f"/control!{_KEY.path}")
        )
    for number, part in enumerate(seen.partitions):
        if part.volume is not None and part.volume.version == 2:
            made += _volume_controls(number, part, part.volume, policy)
    return tuple(made)


def _volume_controls(
    number: int, part: PartitionSeen, volume: VolumeSeen, policy: LuksPolicy
) -> list[Control[LuksObservation]]:
    cipher = policy.ciphers[0]
    good = KdfSeen(type="argon2id", time=policy.time, memory=policy.memory_kib, cpus=1)
    slot_name, token_name = f"{part.subject}, keyslot {_NUMBER}", f"{part.subject}, token {_NUMBER}"

    def slot(kdf: KdfSeen) -> KeyslotSeen:
        bits = policy.key_size
        return KeyslotSeen(
            number=_NUMBER, type="luks2", key_size=bits, cipher=cipher, cipher_bits=bits, kdf=kdf, volume=True
        )

    def control(name: str, rule: str, subject: str, **changes: object) -> Control[LuksObservation]:
        return Control(f"{part.subject}: {name}", _with_volume(number, changes), rule, subject)

    made = [
        control("LUKS1", "luks1", part.subject, version=1),
        control("a stale copy of the header", "header-copies", part.subject, faults=("control",)),
        control(
            "a slot with pbkdf2",
            "keyslot-kdf",
            slot_name,
            keyslots=(*volume.keyslots, slot(KdfSeen(type="pbkdf2", iterations=1000, hash="sha256"))),
        ),
        control(
            "a slot with less memory",
            "keyslot-memory",
            slot_name,
            keyslots=(*volume.keyslots, slot(good.model_copy(update={"memory": policy.memory_kib - 1}))),
        ),
        control(
            "a slot with less time",
            "keyslot-time",
            slot_name,
            keyslots=(*volume.keyslots, slot(good.model_copy(update={"time": policy.time - 1}))),
        ),
        control(
            "another cipher",
            "cipher",
            f"{part.subject}, segment {_NUMBER}",
            segments=tuple(
                segment.model_copy(update={"name": str(_NUMBER), "cipher": "cipher_null-ecb"})
                for segment in volume.segments
            ),
        ),
        control(
            "stored data that are not encrypted",
            "payload",
            f"{part.subject}, segment {_NUMBER}",
            segments=(*volume.segments, _segment("crypt", cipher)),
        ),
        control(
            "a segment in the clear",
            "segment",
            f"{part.subject}, segment {_NUMBER}",
            segments=(*volume.segments, _segment("linear", "")),
        ),
        control("a token of an unknown kind", "unknown-token", token_name, tokens=(
            *volume.tokens, TokenSeen(number=_NUMBER, type="osgates-control", keyslots=()))),
    ]  # fmt: skip
    if policy.refused:
        opened = tuple(
            Guess(keyslot=_NUMBER, passphrase=phrase, opened=True) for phrase in dict.fromkeys(policy.refused)
        )
        made.append(
            control(
                "a slot that anybody opens",
                "guessable",
                slot_name,
                keyslots=(*volume.keyslots, slot(good)),
                guesses=(*volume.guesses, *opened),
            )
        )
    if policy.recovery:
        kept = tuple(token for token in volume.tokens if token.type != RECOVERY)
        left = tuple(entry for entry in volume.keyslots if entry.number not in policy.recovery_slots)
        made.append(control("no recovery key", "no-recovery", part.subject, tokens=kept, keyslots=left))
    if policy.tpm == "forbidden" or (TPM in policy.tokens and policy.pcrs):
        token = TokenSeen(number=_NUMBER, type=TPM, keyslots=(_NUMBER,), bank="sha256")
        made.append(
            control(
                "a TPM that is bound to no PCR",
                "tpm-forbidden" if policy.tpm == "forbidden" else "tpm-pcrs",
                token_name,
                tokens=(*volume.tokens, token),
            )
        )
    return made


def _subject() -> str:
    return f"partition {_NUMBER}"


def _with_partition(holds: str) -> Sabotage:
    def sabotage(seen: LuksObservation) -> LuksObservation:
        end = seen.disk.capacity
        extra = PartitionSeen(number=_NUMBER, type="0x00", name="", start=end, size=1 << 20, holds=holds)
        return seen.model_copy(update={"partitions": (*seen.partitions, extra)})

    return sabotage


def _with_gap(seen: LuksObservation) -> LuksObservation:
    end = seen.disk.capacity
    return seen.model_copy(update={"gaps": (*seen.gaps, GapSeen(start=end, size=1 << 20, first=end))})


def _segment(kind: str, cipher: str) -> SegmentSeen:
    return SegmentSeen(name=str(_NUMBER), type=kind, start=0, size=4096, cipher=cipher, blocks=1, entropy=1.0)


def _without_partitions(seen: LuksObservation) -> LuksObservation:
    return seen.model_copy(update={"partitions": ()})


def _changed(seen: LuksObservation, number: int, changes: dict[str, object]) -> LuksObservation:
    parts = list(seen.partitions)
    parts[number] = parts[number].model_copy(update=changes)
    return seen.model_copy(update={"partitions": tuple(parts)})


def _without_boot_files(seen: LuksObservation) -> LuksObservation:
    parts = tuple(
        part if part.boot is None else part.model_copy(update={"boot": BootFilesSeen()}) for part in seen.partitions
    )
    return seen.model_copy(update={"partitions": parts})


def _with_file(number: int, file: FileSeen) -> Sabotage:
    def sabotage(seen: LuksObservation) -> LuksObservation:
        boot = seen.partitions[number].boot or BootFilesSeen()
        return _changed(seen, number, {"boot": boot.model_copy(update={"files": (*boot.files, file)})})

    return sabotage


def _with_volume(number: int, changes: dict[str, object]) -> Sabotage:
    def sabotage(seen: LuksObservation) -> LuksObservation:
        volume = seen.partitions[number].volume
        changed = None if volume is None else volume.model_copy(update=changes)
        return _changed(seen, number, {"volume": changed})

    return sabotage


GATE = Gate(
    name="luks",
    title="the installed disk is encrypted: LUKS2, argon2id in every slot, nothing else in the clear",
    states=(State.INSTALLED,),
    observation=LuksObservation,
    policy=LuksPolicy,
    judge=judge,
    controls=controls,
    baseline=baseline,
    compare=compare,
)

__all__ = ["GATE", "LUKS", "LuksObservation", "LuksPolicy", "baseline", "compare", "controls", "judge"]
