"""How a disk says that it is opened without a passphrase: the tokens in its LUKS2 headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.tpm_model import TpmSlot
from pytest_osgates.image.disk import contents, luks
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import SourceContent, open_disk
from pytest_osgates.vm.text import one_line

TYPE = "systemd-tpm2"
# By which no TPM opens anything: systemd-cryptenroll(1), cryptsetup-token(8).
_WITHOUT_TPM = frozenset({"systemd-recovery", "systemd-fido2", "systemd-pkcs11", "luks2-keyring"})
# In which a LUKS volume may lie, and is not looked for.
_AROUND = frozenset({"LVM2_member", "linux_raid_member", "bcache", "DM_integrity"})


@dataclass(frozen=True)
class Slots:
    """`slots` are bound by systemd; `others` may open the disk as well, and what they are bound to is not known;
    `policy_keys` sign policies (PEM)."""

    slots: tuple[TpmSlot, ...] = ()
    others: tuple[str, ...] = ()
    policy_keys: tuple[bytes, ...] = ()


def slots(disk: Path) -> Slots:
    """:raise ImageError: the disk cannot be read."""
    found: list[TpmSlot] = []
    others: list[str] = []
    keys: list[bytes] = []
    with open_disk(disk) as source:
        for part in read_table(source).partitions:
            content = SourceContent(source, part.start, part.size)
            kind = contents.identify(source, content, part.start, part.size)
            kinds = {kind.kind, *kind.also}
            around = sorted(kinds & _AROUND)
            others += [f"partition {part.number}: {what}, in which a volume may lie" for what in around]
            if contents.LUKS not in kinds:
                if luks.has_second(content):
                    others.append(f"partition {part.number}: a LUKS2 header whose first copy is gone")
                continue
            for token in luks.read_luks(content).tokens:
                subject = f"partition {part.number}, token {token.number}"
                if token.type == TYPE:
                    found.append(_slot(subject, token))
                    if token.pubkey:
                        keys.append(token.pubkey)
                elif token.type not in _WITHOUT_TPM:
                    others.append(f"{subject}: of the type {one_line(token.type, 60)!r}")
    return Slots(tuple(found), tuple(others), tuple(keys))


def _slot(subject: str, token: luks.Token) -> TpmSlot:
    return TpmSlot(
        subject=subject,
        pcrs=token.pcrs,
        signed_pcrs=token.signed_pcrs,
        bank=token.bank,
        pin=token.pin,
        pcrlock=token.pcrlock,
    )
