"""What one entry of the profile asks for, one demand at a time, and what to ask the guest for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator

from pytest_osgates.checks.settings.facts import SettingsObservation
from pytest_osgates.model import Control, Finding, Model, Severity

ENOUGH = 300  # characters of anything that a finding quotes


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty")
    return value


def _line(value: str) -> str:
    if any(char in value for char in "\0\n\r"):
        raise ValueError(f"{value!r} is more than one line")
    if not value.isprintable():
        raise ValueError(f"{value!a} holds a character that cannot be seen")
    if value != value.strip() and value.strip():
        # Nothing on any system would be called this: what must be absent would always be.
        raise ValueError(f"{value!r} begins or ends with white space")
    return _said(value)


def _pattern(value: str) -> str:
    if any(ord(char) < ord(" ") and char not in "\t\n" for char in value):
        # TOML 1.0, section String: "\b" is a backspace, which no file has; a demand that it lacks one is always met.
        raise ValueError(f"{value!r} holds a control character: in double quotes, write \\\\b for \\b")
    try:
        compiled = re.compile(_said(value), re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if compiled.search(""):
        raise ValueError(f"{value!r} is found in any text, also in an empty one: it demands nothing")
    return value


def _path(value: str) -> str:
    parts = PurePosixPath(_line(value)).parts
    if (
        not value.startswith("/")
        or value.startswith("//")
        or {"..", "."} & set(parts)
        or str(PurePosixPath(value)) != value
    ):
        raise ValueError(f"{value!r} is not an absolute path in its shortest form, like /etc/skel")
    if set(value) & set("*?"):
        raise ValueError(f"{value!r} would be taken word for word: a path is no pattern here")
    return value


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice")
    return values


Reason = Annotated[str, AfterValidator(_said)]
Line = Annotated[str, AfterValidator(_line)]
Lines = Annotated[tuple[Line, ...], AfterValidator(_once)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Patterns = Annotated[tuple[Pattern, ...], AfterValidator(_once)]
Path = Annotated[str, AfterValidator(_path)]
Paths = Annotated[tuple[Path, ...], AfterValidator(_once)]


@dataclass
class FileQuestion:
    """What to look at in one file, besides stat(2)."""

    content: bool = False
    capabilities: bool = False
    empty: bool = False


@dataclass
class Questions:
    """What to ask the guest. Dictionaries keep the profile's order."""

    sysctls: dict[str, None] = field(default_factory=dict)
    command_line: bool = False
    units: dict[str, None] = field(default_factory=dict)
    files: dict[str, FileQuestion] = field(default_factory=dict)
    mounts: bool = False
    accounts: bool = False
    packages: bool = False
    libraries: dict[str, None] = field(default_factory=dict)
    selinux: bool = False
    lockdown: bool = False

    def file(self, path: str) -> FileQuestion:
        """The question for one file."""
        return self.files.setdefault(path, FileQuestion())


@dataclass(frozen=True)
class Miss:
    """A demand that is not met, or of which nothing is known. `subject` where it is not the demand's own."""

    seen: str
    hint: str = ""
    severity: Severity = Severity.VIOLATION
    subject: str = ""


def unproven(why: str) -> list[Miss]:
    """Nothing is known."""
    return [Miss(why, severity=Severity.UNPROVEN)]


def missed(seen: str, hint: str = "") -> list[Miss]:
    """It is not as demanded."""
    return [Miss(seen, hint)]


# What a look may end with: nothing wrong, something wrong, or nothing to look at, where another demand says so.
Looked = list[Miss] | None
MET: list[Miss] = []
MOOT: Looked = None
NOT_ASKED = "it was not asked for in this observation"


@dataclass(frozen=True)
class Demand:
    """One thing that must be so.

    `look` gives what is wrong, nothing where it is met, MOOT where its thing is not there. `spoil` breaks the fact
    that meets it: the judge must then report (rule, `spoiled` or subject), a violation unless `proof` says otherwise.
    `thing`: what it is about; of a thing that must be absent (`gone`) nothing else can be demanded. `implied`: by
    another demand of the same entry.
    """

    rule: str
    subject: str
    wanted: str
    reason: str
    look: Callable[[SettingsObservation], Looked]
    spoil: Callable[[SettingsObservation], SettingsObservation]
    thing: str = ""
    gone: bool = False
    implied: bool = False
    spoiled: str = ""
    proof: Severity = Severity.VIOLATION

    def findings(self, seen: SettingsObservation) -> list[Finding]:
        """What the judge says."""
        return [
            Finding(
                rule=self.rule,
                subject=miss.subject or self.subject,
                seen=miss.seen[:4000],
                wanted=self.wanted,
                hint="; ".join(part for part in (miss.hint, f"demanded because: {self.reason}") if part),
                severity=miss.severity,
                reason=self.reason,
            )
            for miss in self.look(seen) or MET
        ]

    def met(self, seen: SettingsObservation) -> bool:
        """Whether it is as demanded; remarks do not count."""
        looked = self.look(seen)
        return looked is not None and all(miss.severity is Severity.REMARK for miss in looked)

    def control(self) -> Control[SettingsObservation]:
        """The sabotage of what meets it."""
        subject = self.spoiled or self.subject
        return Control(f"{self.rule} {subject} spoiled", self.spoil, self.rule, subject, self.proof)


class Entry(Model):
    """One ``[[gate.settings.KIND]]``: on which state, and why."""

    state: Literal["live", "installed"]
    reason: Reason

    def demands(self) -> Iterator[Demand]:
        """Everything that it asks for."""
        raise NotImplementedError

    def ask(self, questions: Questions) -> None:
        """What has to be asked for it."""
        raise NotImplementedError


def like(text: str, pattern: str) -> bool:
    """Whether `text` fits a pattern with ``*`` and ``?``; ``[`` stands for itself."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def short(text: str) -> str:
    """As much of a text as a finding quotes."""
    flat = " ".join(text.split())
    return flat if len(flat) <= ENOUGH else flat[:ENOUGH] + "..."


def either(values: tuple[str, ...]) -> str:
    """``a``, or ``a or b``."""
    return " or ".join(values)
