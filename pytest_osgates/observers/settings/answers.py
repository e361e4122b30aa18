"""The records of the script's output, taken apart. What they mean stands in `parse`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from pytest_osgates.vm.errors import ChannelError

MAX_FIELDS = 16


@dataclass(frozen=True)
class Blob:
    """What a program wrote, and its exit status."""

    status: int
    data: bytes

    @property
    def text(self) -> str:
        """As text; what is no UTF-8 is replaced."""
        return self.data.decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """The lines of the text, ended by newlines alone: str.splitlines() knows a dozen other ends."""
        return self.text.removesuffix("\n").split("\n") if self.data else []


@dataclass
class Answers:
    """Records by tag: `blobs`, and for all others their fields, in order."""

    blobs: dict[str, list[Blob]] = field(default_factory=lambda: defaultdict(list))
    said: dict[str, list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))

    def blob(self, tag: str) -> Blob | None:
        """The first blob with this tag."""
        return self.blobs[tag][0] if self.blobs.get(tag) else None

    def about(self, tag: str, subject: str) -> tuple[str, ...] | None:
        """The first record whose first field is `subject`, without it."""
        return next((fields[1:] for fields in self.said.get(tag, []) if fields[0] == subject), None)


def read(data: bytes) -> Answers:
    """Take the output of the script apart.

    :raise ChannelError: it is cut short, or not what the script writes.
    """
    answers = Answers()
    at = 0
    while at < len(data):
        count, at = _field(data, at)
        if not (count.isascii() and count.isdecimal() and len(count) < 4 and 1 <= int(count) <= MAX_FIELDS):
            raise ChannelError("the guest's answer about its settings is not what was asked for")
        fields = []
        for _ in range(int(count)):
            text, at = _field(data, at)
            fields.append(text)
        if fields == ["end"]:
            if at != len(data):
                break
            return answers
        if fields[0] != "blob":
            answers.said[fields[0]].append(tuple(fields[1:]))
            continue
        at = _blob(data, at, fields, answers)
    raise ChannelError("the guest's answer about its settings is cut short, or goes on after its end")


def _field(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(b"\0", at)
    if end < 0:
        raise ChannelError("the guest's answer about its settings is cut short")
    return data[at:end].decode("utf-8", "replace"), end + 1


def _blob(data: bytes, at: int, fields: list[str], answers: Answers) -> int:
    numbers = fields[2:]
    if len(fields) != 4 or not all(
        number.isascii() and number.isdecimal() and len(number) < 12 for number in numbers
    ):
        raise ChannelError("the guest's answer about its settings is not what was asked for")
    status, size = map(int, numbers)
    if at + size > len(data):
        raise ChannelError("the guest's answer about its settings is cut short")
    answers.blobs[fields[1]].append(Blob(status, data[at : at + size]))
    return at + size
