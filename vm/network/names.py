"""One synthetic address a name, remembered both ways, so that a connection can be told by its name."""

from __future__ import annotations

# RFC 2544 reserves 198.18.0.0/15 for tests of networks; RFC 3849 reserves 2001:db8::/32 for documentation.
_V4_FIRST = (198 << 24) | (18 << 16) | 16
_V6_PREFIX = b"\x20\x01\x0d\xb8\xff\x53" + bytes(6)
MAX_NAMES = 100_000


class NameTable:
    """Names to addresses and back. After `MAX_NAMES` names all others share one address, and `full` says so."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[bytes, str] = {}
        self.full = False

    def __len__(self) -> int:
        return len(self._numbers)

    def address(self, name: str, *, v6: bool) -> bytes:
        """The address of `name` (in lower case), the same whenever it is asked."""
        number = self._numbers.get(name)
        if number is None:
            if len(self._numbers) >= MAX_NAMES:
                self.full = True
                return self._pack(MAX_NAMES, v6)
            number = self._numbers[name] = len(self._numbers)
            self._names[self._pack(number, False)] = name
            self._names[self._pack(number, True)] = name
        return self._pack(number, v6)

    @staticmethod
    def _pack(number: int, v6: bool) -> bytes:
        if v6:
            return _V6_PREFIX + (number + 16).to_bytes(4, "big")
        return (_V4_FIRST + number).to_bytes(4, "big")

    def name(self, address: bytes) -> str:
        """Whose address it is; empty for one that was never given to a name."""
        return self._names.get(address, "")
