"""The head of a loaded SELinux policy, as selinuxfs gives it: which types are permissive, whatever they are called.

security/selinux/ss/policydb.c, policydb_read(): magic, length and text of a name, version, configuration and two
counts; then two bitmaps, the policy's capabilities and the permissive types. ebitmap.c, ebitmap_read(): the unit
(64), the highest bit, a count, and that many pairs of a first bit and 64 bits. All numbers are little-endian.
"""

from __future__ import annotations

import struct

# Of the whole policy the first so many bytes are asked for: 64 types in 12 bytes.
HEAD = 64 << 10
_MAGIC = 0xF97CFF8C
_NAME = b"SE Linux"
# security/selinux/include/security.h: POLICYDB_VERSION_POLCAP is 22.
_PERMISSIVE_SINCE = 23
_UNIT = 64
_MAX_TYPE = 1 << 20


def permissive_types(data: bytes) -> frozenset[int] | None:
    """The numbers of the types that the policy makes permissive; None: `data` does not tell."""
    head = struct.Struct(f"<2I{len(_NAME)}s4I")
    if len(data) < head.size:
        return None
    magic, length, name, version, _, _, _ = head.unpack_from(data)
    if (magic, length, name) != (_MAGIC, len(_NAME), _NAME):
        return None
    if version < _PERMISSIVE_SINCE:
        return frozenset()
    capabilities = _bitmap(data, head.size)
    permissive = _bitmap(data, capabilities[1]) if capabilities is not None else None
    return permissive[0] if permissive is not None else None


def _bitmap(data: bytes, at: int) -> tuple[frozenset[int], int] | None:
    """The bits that are set, and where the bitmap ends."""
    head, node = struct.Struct("<3I"), struct.Struct("<IQ")
    if at + head.size > len(data):
        return None
    unit, highest, count = head.unpack_from(data, at)
    at += head.size
    if unit != _UNIT or highest > _MAX_TYPE + _UNIT:
        return None
    if not highest:
        # The kernel reads no pairs then.
        return frozenset(), at
    if count > highest // _UNIT + 1 or at + count * node.size > len(data):
        return None
    bits: set[int] = set()
    for _ in range(count):
        first, mask = node.unpack_from(data, at)
        at += node.size
        bits.update(first + bit for bit in range(_UNIT) if mask >> bit & 1)
    return frozenset(bits), at
