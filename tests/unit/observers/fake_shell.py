"""A guest's shell that answers from a table."""

from __future__ import annotations

from typing import cast

from pytest_osgates.vm.guest.channel import GuestShell, ShellResult

Answer = tuple[int, bytes, bytes]


class FakeShell:
    """Each command is answered by the first key that it contains; one without a key fails as in a real shell."""

    def __init__(self, answers: dict[str, bytes | Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def run(
        self, command: str, *, timeout: float = 60.0, max_output: int = 0, shown: str | None = None
    ) -> ShellResult:
        self.asked.append(command)
        for key, answer in self.answers.items():
            if key in command:
                status, out, err = (0, answer, b"") if isinstance(answer, bytes) else answer
                return ShellResult(command, status, out, err)
        return ShellResult(command, 127, b"", b"sh: not found\n")

    def read_file(self, path: str, *, timeout: float = 60.0, max_size: int = 0) -> bytes:
        return self.run(f"cat -- {path}", max_output=max_size).check().stdout


def shell(answers: dict[str, bytes | Answer]) -> GuestShell:
    return cast("GuestShell", FakeShell(answers))
