"""What of a disk can be read without a passphrase: partitions, the space between them, and what boots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache

from pytest_osgates import data
from pytest_osgates.checks.luks_model import (
    BootFilesSeen,
    FileSeen,
    GapSeen,
    LuksObservation,
    LuksPolicy,
    PartitionSeen,
    PlainPartition,
)
from pytest_osgates.checks.luks_slots import RANDOM
from pytest_osgates.checks.luks_system import judge_system
from pytest_osgates.model import Finding, Severity

LUKS = "crypto_LUKS"
# Where boot loaders for BIOS put what follows the first sector (GRUB's core.img).
_BOOT_GAP = 1 << 20
_SECTOR = 512
# What is in no format that is known, and in the clear: GRUB's core image, PReP's boot loader.
_MOST_UNKNOWN = 32 << 20
# systemd and cryptsetup-initramfs make a new key at every boot from these: swap, /tmp.
_FRESH = frozenset({"/dev/urandom", "/dev/random", "/dev/hwrng"})
_GRUB_KEYS = frozenset({"--key-file", "--password"})
_GRUB_KNOWN = frozenset({"--uuid", "--all", "--boot"})
# What words_of_keys() says of it: that it is a key, and what nobody can tell from the line.
GRUB_KEY = "cryptomount with a key"
GRUB_UNKNOWN = "cryptomount, and it is not known with what: "
_SHOWN = 100
_ENDS = ";{}"
_CRYPTOMOUNT = re.compile(r"(?:(=)|(?<![\w./$-]))cryptomount(?![\w./-])([^;|&]*)")
_NO_KEY = frozenset({"", "-", "none"})
# crypttab(5): what unlocks is a program; keyslots are those of another header than the disk's own.
_OPTIONS = {"keyscript=": "keyscript", "header=": "other-header"}


def judge_partitions(seen: LuksObservation, policy: LuksPolicy) -> list[Finding]:
    """Partitions, gaps, and the files that are looked at before anybody is asked for a passphrase."""
    findings: list[Finding] = []
    used: dict[int, int] = {}
    if not any(partition.holds == LUKS for partition in seen.partitions):
        findings.append(
            Finding(
                rule="no-encryption",
                subject="disk",
                seen=f"{len(seen.partitions)} partitions, none of them LUKS",
                wanted="LUKS2",
            )
        )
    for partition in seen.partitions:
        findings += _partition(partition, policy, used)
        findings += _boot(partition, policy)
    findings += [finding for gap in seen.gaps if (finding := _gap(gap, seen.table)) is not None]
    if policy.initrd == "plain" and not any(part.boot and _has_initrd(part.boot) for part in seen.partitions):
        early = any(part.boot and part.boot.initrds for part in seen.partitions)
        findings.append(
            Finding(
                rule="initrd-missing",
                subject="initrd",
                seen="none in any partition that can be read" + (", but for early microcode" if early else ""),
                wanted="the initrd, to look for keys in it",
                hint='if it lies in the encrypted part, where GRUB reads it: initrd = "encrypted"',
                severity=Severity.UNPROVEN,
            )
        )
    findings += [
        Finding(
            rule="unused-acceptance",
            subject=f"{entry.type or 'no type'}: {entry.holds}",
            seen="the profile accepts such a partition in the clear, and there is none",
            wanted="no acceptance without need",
            severity=Severity.REMARK,
        )
        for number, entry in enumerate(policy.accept_plaintext)
        if entry.documented and number not in used
    ]
    return findings


def _has_initrd(boot: BootFilesSeen) -> bool:
    """Whether there is one that could unlock a disk: with more than what the kernel reads before it unpacks any."""
    early = data.load("key_files")["early"]
    return any(
        file.container in boot.initrds and not any(fnmatchcase(file.path, entry["pattern"]) for entry in early)
        for file in boot.files
    )


def _partition(partition: PartitionSeen, policy: LuksPolicy, used: dict[int, int]) -> list[Finding]:
    findings = []
    if partition.also:
        findings.append(
            Finding(
                rule="ambiguous",
                subject=partition.subject,
                seen=f"{partition.holds}, and signatures of {', '.join(partition.also)}",
                wanted="one signature: who looks for another may find another file system",
                hint="wipefs before it is formatted",
                severity=Severity.UNPROVEN,
            )
        )
    if partition.holds == LUKS:
        if partition.volume is None:
            findings.append(
                Finding(
                    rule="header",
                    subject=partition.subject,
                    seen=partition.error or "it was not read",
                    wanted="a LUKS header that can be read",
                    severity=Severity.UNPROVEN,
                )
            )
        return findings
    if partition.holds == "empty":
        return [*findings, _empty(partition)]
    if partition.holds == "swap":
        return [
            *findings,
            Finding(
                rule="clear-swap",
                subject=partition.subject,
                seen="swap space that is not encrypted",
                wanted="swap inside the encrypted volume, or none: memory holds keys and passwords",
            ),
        ]
    found = _plaintext(partition, policy, used)
    return [*findings, found, *(judge_system(partition) if found.severity is Severity.ACCEPTED else ())]


def _empty(partition: PartitionSeen) -> Finding:
    return Finding(
        rule="empty-partition",
        subject=partition.subject,
        seen=f"{partition.size} bytes, all zero ({partition.type_name or 'no type'})",
        wanted="known: nothing can be said of what will be written there",
        severity=Severity.REMARK,
    )


def _acceptance(partition: PartitionSeen, policy: LuksPolicy) -> tuple[int, PlainPartition] | None:
    for number, entry in enumerate(policy.accept_plaintext):
        if entry.type == partition.type and entry.holds == partition.holds:
            return number, entry
    return None


def _plaintext(partition: PartitionSeen, policy: LuksPolicy, used: dict[int, int]) -> Finding:
    accepted = _acceptance(partition, policy)
    random = partition.holds == "unknown" and (partition.entropy or 0.0) >= RANDOM
    hint, reason = "", ""
    if accepted is not None:
        number, entry = accepted
        used[number] = used.get(number, 0) + 1
        if not entry.documented:
            hint = "the profile's acceptance has no reason: it counts as none"
        elif used[number] > entry.most:
            hint = f"the profile accepts {entry.most} of them"
        elif partition.holds == "unknown" and not random and partition.size > _MOST_UNKNOWN:
            hint = f"what is neither known nor random is accepted up to {_MOST_UNKNOWN} bytes"
        else:
            reason = entry.reason
    named = f" ({partition.type_name})" if partition.type else ""
    return Finding(
        rule="unknown-partition" if random else "plaintext-partition",
        subject=partition.subject,
        seen=f"{partition.holds}{named}, {partition.size} bytes"
        + ("; random bytes without a header" if random else ""),
        wanted="LUKS2, or a partition that the profile names with a reason",
        hint=hint or "see [[gate.luks.accept_plaintext]]",
        severity=Severity.ACCEPTED if reason else Severity.UNPROVEN if random else Severity.VIOLATION,
        reason=reason,
    )


def _gap(gap: GapSeen, table: str) -> Finding | None:
    if gap.first is None:
        return None
    # GRUB's begins in the sector after an MBR; on a GPT disk it has a partition.
    first = table == "dos" and gap.start + gap.size <= _BOOT_GAP and _SECTOR <= gap.first < 2 * _SECTOR
    boot = first and not gap.holds
    place = ", where boot loaders for BIOS lie" + ("" if gap.grub else ": it is not GRUB's core image alone")
    return Finding(
        rule="boot-gap" if boot else "unpartitioned-data",
        subject=f"unpartitioned space at {gap.start}",
        seen=f"bytes at {gap.first} of the disk"
        + (f": {', '.join(gap.holds)}" if gap.holds else place if boot else ""),
        wanted="nothing, or GRUB's core image" if boot else "nothing that is not encrypted",
        hint="" if boot else "make the disk anew: what an earlier installation left can be read",
        severity=Severity.VIOLATION if not boot else Severity.REMARK if gap.grub else Severity.UNPROVEN,
    )


def _boot(partition: PartitionSeen, policy: LuksPolicy) -> list[Finding]:
    """Keys in what boots; and what could not be looked into, where it might be."""
    accepted = _acceptance(partition, policy)
    boot = partition.boot
    if boot is None:
        may_boot = accepted is not None and accepted[1].boots and partition.holds != "unknown"
        if partition.holds != "vfat" and not may_boot:
            return [_names_not_read(partition)] if accepted is not None and partition.error else []
        return [_not_looked_into(partition.subject, partition.error or f"{partition.holds} is not read here")]
    findings = [_not_looked_into(f"{partition.subject}: {name}", why) for name, why in boot.unread]
    if boot.free:
        findings.append(
            Finding(
                rule="free-space",
                subject=partition.subject,
                seen=f"{boot.free} bytes that are not zero, in space that belongs to no file",
                wanted="known: what deleted files leave can be read, and is not looked into",
                hint="make the file system anew, and write each file once",
                severity=Severity.REMARK,
            )
        )
    keys: set[tuple[str, str]] = set()
    for file in boot.files:
        if why := _looks_like_key(file):
            keys.add((file.container, file.path))
            rule = "key-in-initrd" if file.container else "key-on-esp" if partition.holds == "vfat" else "key-on-boot"
            found = _key(rule, _place(file), why, policy)
            findings.append(found)
            if found.severity is Severity.ACCEPTED:
                # It was taken for no key; a crypttab that names it says that it is one.
                keys.discard((file.container, file.path))
    for line in boot.crypttab:
        if line.key not in _NO_KEY | _FRESH and (line.container, line.key) not in keys:
            name = f"{line.container}!{line.path}: {line.name}"
            findings.append(_key("crypttab-key", name, f"the key is {line.key}", policy))
        for option, rule in _OPTIONS.items():
            if option in line.options:
                name = f"{line.container}!{line.path}: {line.name}"
                findings.append(_key(rule, name, line.options, policy, Severity.UNPROVEN))
    for name, word in boot.words:
        unknown = word.startswith(GRUB_UNKNOWN)
        severity = Severity.UNPROVEN if unknown else Severity.VIOLATION
        findings.append(_key("parameter-key", name, word, policy, severity))
    return findings


def _place(file: FileSeen) -> str:
    return f"{file.container}!{file.path}" if file.container else file.path


def _not_looked_into(subject: str, why: str) -> Finding:
    return Finding(
        rule="not-looked-into",
        subject=subject,
        seen=why,
        wanted="every file that can be read before the disk is unlocked",
        severity=Severity.UNPROVEN,
    )


def _names_not_read(partition: PartitionSeen) -> Finding:
    """The profile says that it need not be looked into; what it is then is the profile's word alone."""
    return Finding(
        rule="system-unseen",
        subject=partition.subject,
        seen=partition.error,
        wanted="names of its files, to tell that there is no system on it",
        severity=Severity.REMARK,
    )


def _looks_like_key(file: FileSeen) -> str:
    """Why a file may be a key; empty: it does not look like one."""
    known = data.load("key_files")
    path = file.path.lower()
    base = path.rpartition("/")[2]
    for entry in known["name"]:
        pattern = entry["pattern"]
        if fnmatchcase(path if pattern.startswith("/") else base, pattern):
            return f"its name fits {pattern} ({entry['source']})"
    if not file.random:
        return ""
    if file.named:
        # Firmware is asked for by the kernel, not by a unit or a script.
        return f"{file.size} bytes that cannot be told from random ones, and a text of the initrd names it"
    for entry in known["harmless"]:
        fits = fnmatchcase(path, entry["pattern"]) and entry.get("in_initrd", False) == bool(file.container)
        if fits and file.size in entry.get("sizes", [file.size]):
            return ""
    return f"{file.size} bytes that cannot be told from random ones"


def _key(rule: str, subject: str, seen: str, policy: LuksPolicy, severity: Severity = Severity.VIOLATION) -> Finding:
    entry = next((e for e in policy.accept_keys if fnmatchcase(subject, e.path.replace("[", "[[]"))), None)
    documented = entry is not None and entry.documented
    return Finding(
        rule=rule,
        subject=subject,
        seen=seen,
        wanted="no key where everybody can read it who has the disk",
        hint="" if entry is None or documented else "the profile's acceptance has no reason: it counts as none",
        severity=Severity.ACCEPTED if documented else severity,
        reason=entry.reason if entry is not None and documented else "",
    )


@cache
def _parameters() -> tuple[tuple[str, re.Pattern[str], str], ...]:
    """Kernel parameters that name a key, and what their value has to have in it for that. The kernel takes - and _ in
    names for the same. Before one stands what no name has: the equals sign of a variable, a brace."""
    found = []
    for entry in data.load("key_files")["parameter"]:
        parts = re.split("[-_]", entry["name"])
        pattern = re.compile(rf"(?<![\w.-])(?:rd\.)?{'[-_]'.join(map(re.escape, parts))}=(\S+)")
        found.append(("_".join(parts), pattern, entry.get("has", "")))
    return tuple(found)


def words_of_keys(line: str) -> list[str]:
    """What a line of a boot configuration, or a kernel's command line, says of keys: parameters that name a file,
    and GRUB's ``cryptomount`` if it gets one, or a passphrase (GRUB's manual, cryptomount)."""
    # GRUB and the kernel take quotes within a word away, GRUB backslashes too.
    line = line.replace('"', "").replace("'", "").replace("\\", "")
    if "=" not in line and "cryptomount" not in line:
        return []
    found = []
    folded = line.replace("-", "_")
    for name, pattern, needed in _parameters():
        for match in pattern.finditer(line) if f"{name}=" in folded else ():
            # A command of GRUB's ends there, a parameter need not.
            value = match[1].rstrip(_ENDS)
            if value.strip(_ENDS) and needed in value:
                found.append(match[0].rstrip(_ENDS))
    for match in _CRYPTOMOUNT.finditer(line):
        # What ends the command may have stood in quotes.
        options = (word for word in line[match.end() :].split() if word.startswith("-"))
        if any(word[:2] in {"-k", "-p"} or word.partition("=")[0] in _GRUB_KEYS for word in options):
            found.append(GRUB_KEY)
        elif said := _cryptomount(match[2]) or (match[1] and f"{GRUB_UNKNOWN}a variable is set to it"):
            found.append(said)
    return list(dict.fromkeys(found))


def _cryptomount(rest: str) -> str:
    """What the arguments of ``cryptomount`` say of keys (grub-core/disk/cryptodisk.c, options[]); empty: nothing."""
    words = iter(rest.split())
    unknown = ""
    for word in words:
        if "$" in word:
            unknown = unknown or word
        elif word.startswith("--"):
            name, equals, _ = word.partition("=")
            if name in _GRUB_KEYS:
                return GRUB_KEY
            if name == "--uuid" and not equals:
                unknown = unknown or _unknown_value(words)
            elif name not in _GRUB_KNOWN:
                unknown = unknown or word
        elif word.startswith("-") and len(word) > 1:
            for at, letter in enumerate(word[1:], 2):
                if letter in "kp":
                    return GRUB_KEY
                if letter == "u":
                    # The rest of the word is its value, or the next one.
                    unknown = unknown or ("" if word[at:] else _unknown_value(words))
                    break
                if letter not in "ab":
                    unknown = unknown or word
                    break
    return f"{GRUB_UNKNOWN}{unknown[:_SHOWN]}" if unknown else ""


def _unknown_value(words: Iterator[str]) -> str:
    value = next(words, "")
    return value if "$" in value else ""
