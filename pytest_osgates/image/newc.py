"""Archives for the end of an initrd (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

from collections.abc import Mapping


def appended_archive(position: int, members: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive (newc) to be put behind an initrd of `position` bytes: the kernel unpacks one after another.

    `members`: permissions and contents by path; directories are made for them.
    """
    made = bytearray(-position % 4)
    names = {parent for name in members for parent in _parents(name)}
    entries: list[tuple[str, int, bytes]] = [(name, 0o40755, b"") for name in sorted(names)]
    entries += [(name, 0o100000 | mode, content) for name, (mode, content) in members.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for number, (name, mode, content) in enumerate(entries, 1):
        raw = name.encode() + b"\x00"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        made += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        made += bytes(-(110 + len(raw)) % 4) + content + bytes(-len(content) % 4)
    return bytes(made)


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
