"""What is demanded of files and directories."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, StrictBool, model_validator

from pytest_osgates.checks.settings import capabilities
from pytest_osgates.checks.settings.demand import (
    MET,
    MOOT,
    NOT_ASKED,
    Demand,
    Entry,
    Line,
    Looked,
    Miss,
    Paths,
    Patterns,
    Questions,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import CapabilityFact, FileFact, SettingsObservation, Stat, TextFact
from pytest_osgates.model import Severity

# Hashes of passwords belong in no evidence; what may be known of them, [[gate.settings.user]] asks.
SECRET = frozenset({"/etc/shadow", "/etc/gshadow", "/etc/shadow-", "/etc/gshadow-", "/etc/security/opasswd"})
CONTROL = "osgates-control"
_ATTRIBUTES = (
    *("type", "mode", "mode_at_most", "owner", "group", "contains", "lacks", "capabilities", "links_to", "empty"),
)


def _octal(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[0-7]{3,5}", value) or int(value, 8) > 0o7777:
        raise ValueError(f'{value!r} is no mode: write it as text, in octal, like "0640"')
    return value


def _caps(value: str) -> str:
    capabilities.parse(value)
    return value


Octal = Annotated[str, BeforeValidator(_octal)]
FileType = Literal["file", "directory", "symlink", "character device", "block device", "fifo", "socket"]


class FileEntry(Entry):
    """``[[gate.settings.file]]``. Mode, owner, group, content, capabilities and ``empty`` are those of what a path
    leads to; ``type`` and ``links_to`` are the path's own.
    """

    paths: Paths
    present: StrictBool = False
    absent: StrictBool = False
    type: FileType | None = None
    mode: Octal | None = None
    mode_at_most: Octal | None = None
    owner: Line | None = None
    group: Line | None = None
    contains: Patterns = ()
    lacks: Patterns = ()
    capabilities: Annotated[str, AfterValidator(_caps)] | None = None
    links_to: Line | None = None
    empty: StrictBool | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> FileEntry:
        others = [name for name in _ATTRIBUTES if getattr(self, name) not in (None, ())]
        if not self.paths or not (others or self.absent or self.present):
            raise ValueError(f"it demands nothing: give paths, and absent, present, {', '.join(_ATTRIBUTES)}")
        if self.absent and (others or self.present):
            raise ValueError(f"a file that is absent cannot have {(others or ['present'])[0]}")
        if self.mode is not None and self.mode_at_most is not None:
            raise ValueError("give mode or mode_at_most: mode is exact")
        if self.mode_at_most is not None and int(self.mode_at_most, 8) == 0o7777:
            raise ValueError("mode_at_most 7777 allows everything")
        if self.links_to is not None and self.type not in {None, "symlink"}:
            raise ValueError(f"a {self.type} links to nothing")
        content = bool(self.contains or self.lacks)
        if content and self.type not in {None, "file", "symlink"}:
            raise ValueError(f"a {self.type} has no content to search")
        if self.empty and self.contains:
            raise ValueError("an empty file contains nothing")
        secret = sorted(SECRET & set(self.paths)) if content else []
        if secret:
            raise ValueError(f"what is in {secret[0]} is read by no gate: ask for it with [[gate.settings.user]]")
        return self

    def ask(self, questions: Questions) -> None:
        for path in self.paths:
            question = questions.file(path)
            question.content |= bool(self.contains or self.lacks)
            question.capabilities |= self.capabilities is not None
            question.empty |= self.empty is not None

    def demands(self) -> Iterator[Demand]:
        for path in self.paths:
            if self.absent:
                yield self._demand(path, "absent", "nothing there", _is_absent, _something, gone=True)
                continue
            yield self._demand(path, "present", "there", _is_there, lambda _: FileFact(), implied=not self.present)
            yield from self._of_the_path(path)
            yield from self._of_its_target(path)
            yield from self._of_the_content(path)

    def _of_the_path(self, path: str) -> Iterator[Demand]:
        if self.type is not None:
            wanted = self.type
            other = "fifo" if wanted != "fifo" else "socket"
            yield self._attribute(
                path,
                "type",
                wanted,
                lambda fact: MET if fact.own is not None and fact.own.type == wanted else missed(_type(fact)),
                lambda fact: fact.model_copy(update={"own": (fact.own or _ANY).model_copy(update={"type": other})}),
            )
        if self.links_to is not None:
            target = self.links_to
            yield self._attribute(
                path,
                "links-to",
                f"a link to {target}",
                lambda fact: MET if fact.link == target else missed(short(_type(fact))),
                lambda fact: fact.model_copy(update={"link": CONTROL}),
            )

    def _of_its_target(self, path: str) -> Iterator[Demand]:
        if self.mode is not None:
            mode = int(self.mode, 8)
            yield self._target(path, "mode", f"{mode:04o}", lambda s: s.mode == mode, _mode, {"mode": mode ^ 0o0002})
        if self.mode_at_most is not None:
            most = int(self.mode_at_most, 8)
            extra = ~most & (most + 1) & 0o7777
            yield self._target(
                path,
                "mode",
                f"no permission beyond {most:04o}",
                lambda s: not s.mode & ~most,
                _mode,
                {"mode": most | extra},
            )
        for what in ("owner", "group"):
            wanted = getattr(self, what)
            if wanted is not None:
                number = "uid" if what == "owner" else "gid"
                yield self._target(
                    path,
                    what,
                    wanted,
                    partial(_belongs_to, wanted=wanted, name=what, number=number),
                    partial(_owner, name=what, number=number),
                    {what: CONTROL, number: -1},
                )

    def _of_the_content(self, path: str) -> Iterator[Demand]:
        for pattern in self.contains:
            yield self._content(path, f"contains {pattern}", f"text that {pattern!r} finds", pattern, found=True)
        for pattern in self.lacks:
            yield self._content(path, f"lacks {pattern}", f"no text that {pattern!r} finds", pattern, found=False)
        if self.capabilities is not None:
            wanted = capabilities.parse(self.capabilities)
            other = "none" if wanted != capabilities.Capabilities() else "cap_sys_admin=ep"

            def judge(fact: FileFact) -> list[Miss]:
                if fact.target is None:
                    return _dangling(fact)
                seen = fact.capabilities
                if seen is None or seen.problem:
                    return unproven(NOT_ASKED if seen is None else seen.problem)
                try:
                    return MET if capabilities.parse(seen.text) == wanted else missed(short(seen.text))
                except ValueError as error:
                    return unproven(f"capabilities that cannot be read: {error}")

            yield self._attribute(
                path,
                "capabilities",
                wanted.text,
                judge,
                lambda fact: fact.model_copy(update={"capabilities": CapabilityFact(text=other)}),
            )
        if self.empty is not None:
            hollow = self.empty

            def judge_empty(fact: FileFact) -> list[Miss]:
                if fact.target is None:
                    return _dangling(fact)
                if fact.empty is None:
                    return unproven(NOT_ASKED)
                return MET if fact.empty == hollow else missed("empty" if fact.empty else "not empty")

            yield self._attribute(
                path,
                "empty",
                "empty" if hollow else "not empty",
                judge_empty,
                lambda fact: fact.model_copy(update={"empty": not hollow}),
            )

    def _content(self, path: str, what: str, wanted: str, pattern: str, *, found: bool) -> Demand:
        compiled = re.compile(pattern, re.MULTILINE)

        def judge(fact: FileFact) -> list[Miss]:
            if fact.target is None:
                return _dangling(fact)
            content = fact.content
            if content is None or content.problem:
                return unproven(NOT_ASKED if content is None else content.problem)
            if content.text is None:
                return unproven("its content was not read")
            match = compiled.search(content.text)
            if found:
                return MET if match else missed(f"nothing in {len(content.text)} characters")
            # Many programs take "\r\n" for the end of a line, "$" does not: nothing hides in such a line.
            match = match or compiled.search(content.text.replace("\r", ""))
            return missed(short(match[0])) if match else MET

        sample = "" if found else sample_of(pattern)
        planted = TextFact(text=sample) if sample is not None else TextFact(problem="its content was taken away")
        return self._attribute(
            path,
            what,
            wanted,
            judge,
            lambda fact: fact.model_copy(update={"content": planted}),
            proof=Severity.VIOLATION if sample is not None else Severity.UNPROVEN,
        )

    def _target(
        self,
        path: str,
        what: str,
        wanted: str,
        fits: Callable[[Stat], bool],
        say: Callable[[Stat], str],
        other: dict[str, object],
    ) -> Demand:
        def judge(fact: FileFact) -> list[Miss]:
            if fact.target is None:
                return _dangling(fact)
            through = f", of {short(fact.leads_to)}, which it leads to" if fact.link else ""
            return MET if fits(fact.target) else missed(f"{say(fact.target)}{through}")

        def broken(fact: FileFact) -> FileFact:
            return fact.model_copy(update={"target": (fact.target or _ANY).model_copy(update=other)})

        return self._attribute(path, what, wanted, judge, broken)

    def _attribute(
        self,
        path: str,
        what: str,
        wanted: str,
        judge: Callable[[FileFact], list[Miss]],
        broken: Callable[[FileFact], FileFact],
        *,
        proof: Severity = Severity.VIOLATION,
    ) -> Demand:
        return self._demand(
            path, what, wanted, lambda fact: MOOT if fact.own is None else judge(fact), broken, proof=proof
        )

    def _demand(
        self,
        path: str,
        what: str,
        wanted: str,
        judge: Callable[[FileFact], Looked],
        broken: Callable[[FileFact], FileFact],
        *,
        gone: bool = False,
        implied: bool = False,
        proof: Severity = Severity.VIOLATION,
    ) -> Demand:
        def look(seen: SettingsObservation) -> Looked:
            fact = seen.files.get(path)
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            return judge(fact)

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            changed = broken(seen.files.get(path, FileFact()))
            return seen.model_copy(update={"files": {**seen.files, path: changed}})

        return Demand(
            *("file", f"{path} {what}", wanted, self.reason, look, spoil),
            thing=path,
            gone=gone,
            implied=implied,
            proof=proof,
        )


_ANY = Stat(type="file", mode=0o644, uid=0, gid=0, owner="root", group="root")


def sample_of(pattern: str) -> str | None:
    """A text that `pattern` finds, by a few guesses that do for most patterns of profiles; None if none does."""
    compiled = re.compile(pattern, re.MULTILINE)
    plain = pattern
    for written, means in ((r"(?i)", ""), (r"\s*", ""), (r"\s+", " "), (r"\s", " "), (r"\d+", "1"), (r"\d", "1")):
        plain = plain.replace(written, means)
    for written, means in ((r"\S+", "x"), (r"\w+", "x"), (r"\b", ""), (".*", ""), (".+", "x")):
        plain = plain.replace(written, means)
    plain = plain.removeprefix("^").removesuffix("$")
    first = re.sub(r"\(\?:|\(", "", plain).split("|")[0]
    for guess in (plain, re.sub(r"\\(.)", r"\1", plain), re.sub(r"\\(.)", r"\1", re.sub(r"[()?*+^$]", "", first))):
        if compiled.search(guess):
            return guess
    return None


def _something(_: FileFact) -> FileFact:
    return FileFact(own=_ANY, target=_ANY)


def _is_absent(fact: FileFact) -> list[Miss]:
    return MET if fact.own is None else missed(_type(fact))


def _is_there(fact: FileFact) -> list[Miss]:
    return missed("nothing there") if fact.own is None else MET


def _dangling(fact: FileFact) -> list[Miss]:
    return missed(f"a link to {short(fact.link)}, where nothing is")


def _type(fact: FileFact) -> str:
    if fact.own is None:
        return "nothing"
    return f"a link to {short(fact.link)}" if fact.own.type == "symlink" else f"a {fact.own.type}"


def _mode(stat: Stat) -> str:
    return f"{stat.mode:04o}"


def _belongs_to(stat: Stat, wanted: str, name: str, number: str) -> bool:
    return wanted in {getattr(stat, name), str(getattr(stat, number))}


def _owner(stat: Stat, name: str, number: str) -> str:
    return f"{getattr(stat, name) or '?'} ({getattr(stat, number)})"
