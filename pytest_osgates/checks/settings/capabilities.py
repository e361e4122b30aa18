"""File capabilities: their names (linux/capability.h), and the text form of cap_text_formats(7)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

# By number, from 0: CAP_CHOWN to CAP_CHECKPOINT_RESTORE (linux/capability.h).
NAMES = (
    *("cap_chown", "cap_dac_override", "cap_dac_read_search", "cap_fowner", "cap_fsetid", "cap_kill", "cap_setgid"),
    *("cap_setuid", "cap_setpcap", "cap_linux_immutable", "cap_net_bind_service", "cap_net_broadcast"),
    *("cap_net_admin", "cap_net_raw", "cap_ipc_lock", "cap_ipc_owner", "cap_sys_module", "cap_sys_rawio"),
    *("cap_sys_chroot", "cap_sys_ptrace", "cap_sys_pacct", "cap_sys_admin", "cap_sys_boot", "cap_sys_nice"),
    *("cap_sys_resource", "cap_sys_time", "cap_sys_tty_config", "cap_mknod", "cap_lease", "cap_audit_write"),
    *("cap_audit_control", "cap_setfcap", "cap_mac_override", "cap_mac_admin", "cap_syslog", "cap_wake_alarm"),
    *("cap_block_suspend", "cap_audit_read", "cap_perfmon", "cap_bpf", "cap_checkpoint_restore"),
)
_CLAUSE = re.compile(r"([a-z0-9_,]*)((?:[=+-][eip]*)+)")
_STEP = re.compile(r"([=+-])([eip]*)")


@dataclass(frozen=True)
class Capabilities:
    """What a file gives to the program in it. `effective`: the permitted ones are in force from the start.

    `root`: the user id that counts as root in the user namespace that they hold in; 0 is everywhere.
    """

    permitted: frozenset[str] = frozenset()
    inheritable: frozenset[str] = frozenset()
    effective: bool = False
    root: int = 0

    @property
    def text(self) -> str:
        """In a form that `parse` reads, one clause for each set of flags; ``none`` without any."""
        groups: dict[str, list[str]] = {}
        for name in sorted(self.permitted | self.inheritable):
            held = "e" if self.effective else ""
            flags = held + ("i" if name in self.inheritable else "") + ("p" if name in self.permitted else "")
            groups.setdefault(flags, []).append(name)
        text = " ".join(f"{','.join(names)}={flags}" for flags, names in groups.items()) or "none"
        return f"{text} [rootid={self.root}]" if self.root else text


def name(number: int) -> str:
    """The name of a capability; ``cap_NUMBER`` where this version knows none."""
    return NAMES[number] if number < len(NAMES) else f"cap_{number}"


def parse(text: str) -> Capabilities:
    """``cap_net_raw,cap_net_admin=ep``, ``cap_chown+i``, several of them, or ``none``.

    :raise ValueError: it has another form.
    """
    sets: dict[str, set[str]] = {"e": set(), "i": set(), "p": set()}
    root = 0
    words = text.split()
    if words and (match := re.fullmatch(r"\[rootid=(\d{1,10})\]", words[-1])):
        root = int(match[1])
        words.pop()
    if words == ["none"]:
        words = []
    elif not words:
        raise ValueError('no capabilities: write "none"')
    for word in words:
        clause = _CLAUSE.fullmatch(word)
        if clause is None:
            raise ValueError(f'{word!r} is no clause like "cap_net_raw=ep"')
        names = set(NAMES) if clause[1] in {"", "all"} else set(clause[1].split(","))
        unknown = sorted(entry for entry in names if entry not in NAMES and not re.fullmatch(r"cap_\d{1,2}", entry))
        if unknown:
            raise ValueError(f"no capability {unknown[0]!r}")
        for operator, flags in _STEP.findall(clause[2]):
            for flag, members in sets.items():
                if operator == "=":
                    members.difference_update(names)
                if flag in flags and operator != "-":
                    members.update(names)
                elif flag in flags:
                    members.difference_update(names)
    if sets["e"] and sets["e"] != sets["p"] | sets["i"]:
        raise ValueError("a file has one effective bit for all its capabilities")
    return Capabilities(frozenset(sets["p"]), frozenset(sets["i"]), bool(sets["e"]), root)


# linux/capability.h: struct vfs_cap_data and vfs_ns_cap_data, little-endian; the revision is the first number's top
# byte. By revision: how many 32-bit pairs (permitted, inheritable), and whether the root user id follows.
_REVISIONS = {0x01000000: (1, False), 0x02000000: (2, False), 0x03000000: (2, True)}
_REVISION_MASK = 0xFF000000
_EFFECTIVE = 0x000001


def decode(data: bytes) -> Capabilities:
    """The extended attribute ``security.capability`` (capabilities(7), "File capability extended attribute
    versioning").

    :raise ValueError: it is of no known revision, or of another length than its revision's.
    """
    if len(data) < 4:
        raise ValueError(f"{len(data)} bytes are no security.capability")
    (magic,) = struct.unpack_from("<I", data)
    if magic & _REVISION_MASK not in _REVISIONS:
        raise ValueError(f"a security.capability of the unknown revision {magic >> 24}")
    pairs, has_root = _REVISIONS[magic & _REVISION_MASK]
    if len(data) != 4 + 8 * pairs + 4 * has_root:
        raise ValueError(f"{len(data)} bytes are no security.capability of revision {magic >> 24}")
    permitted = inheritable = 0
    for number in range(pairs):
        low, high = struct.unpack_from("<II", data, 4 + 8 * number)
        permitted |= low << 32 * number
        inheritable |= high << 32 * number
    (root,) = struct.unpack_from("<I", data, 4 + 8 * pairs) if has_root else (0,)
    return Capabilities(_named(permitted), _named(inheritable), bool(magic & _EFFECTIVE), root)


def _named(bits: int) -> frozenset[str]:
    return frozenset(name(number) for number in range(64) if bits >> number & 1)
