"""What is demanded of libraries: that every process has one mapped, as a memory allocator that replaces another."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import StrictBool, model_validator

from pytest_osgates.checks.settings.demand import (
    MET,
    NOT_ASKED,
    Demand,
    Entry,
    Line,
    Miss,
    Path,
    Questions,
    Reason,
    like,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import ProcessesFact, ProcessFact, SettingsObservation, TextFact
from pytest_osgates.model import Model, Severity

CONTROL = "/osgates-control"


class ExceptedProcess(Model):
    """Processes that need not have it: by ``exe`` (the program's path), ``name`` (proc(5), comm) or ``unit``; each
    may hold ``*`` and ``?``, and all that are given must fit.
    """

    exe: Line | None = None
    name: Line | None = None
    unit: Line | None = None
    reason: Reason

    @model_validator(mode="after")
    def _names_somebody(self) -> ExceptedProcess:
        patterns = [pattern for pattern in (self.exe, self.name, self.unit) if pattern is not None]
        if not patterns or not any(pattern.strip("*?/") for pattern in patterns):
            raise ValueError("an exception of every process: give exe, name or unit")
        return self

    @property
    def text(self) -> str:
        """How a finding names it."""
        given = {"exe": self.exe, "name": self.name, "unit": self.unit}
        return " ".join(f"{key} {value}" for key, value in given.items() if value is not None)

    def fits(self, process: ProcessFact) -> bool:
        """Whether it is about this process."""
        pairs = ((self.exe, process.exe), (self.name, process.name), (self.unit, process.unit))
        return all(pattern is None or like(given, pattern) for pattern, given in pairs)


class LibraryEntry(Entry):
    """``[[gate.settings.library]]``. ``preload``: it stands in /etc/ld.so.preload. ``mapped``: every process has it
    mapped, but those of ``except``.
    """

    path: Path
    preload: StrictBool = True
    mapped: StrictBool = True
    excepted: tuple[ExceptedProcess, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> LibraryEntry:
        if not (self.preload or self.mapped):
            raise ValueError("it demands nothing: leave preload or mapped true")
        if self.excepted and not self.mapped:
            raise ValueError("where it need not be mapped, no process needs an exception")
        if any(char in self.path for char in " :"):
            # ld.so(8): both separate the entries of /etc/ld.so.preload.
            raise ValueError("ld.so(8) takes a path with a space or a colon for two")
        return self

    def ask(self, questions: Questions) -> None:
        questions.libraries.setdefault(self.path)

    def demands(self) -> Iterator[Demand]:
        if self.preload:
            yield Demand(
                *("library", f"{self.path} preload", "named in /etc/ld.so.preload", self.reason),
                self._look_at_preload,
                _without_preload,
                thing=self.path,
            )
        if self.mapped:
            yield Demand(
                *("library", f"{self.path} mapped", "mapped by every process", self.reason),
                self._look_at_maps,
                self._with_one_that_lacks_it,
                thing=self.path,
                spoiled=f"{self.path} in {CONTROL}",
            )

    def _look_at_preload(self, seen: SettingsObservation) -> list[Miss]:
        fact = seen.processes
        if fact is None or self.path not in fact.libraries:
            return unproven(NOT_ASKED if fact is None else fact.problem or NOT_ASKED)
        if fact.preload.problem:
            return unproven(f"/etc/ld.so.preload: {fact.preload.problem}")
        if fact.preload.text is None:
            return missed("there is no /etc/ld.so.preload")
        if self.path not in preloaded(fact.preload.text):
            return missed(short(fact.preload.text) or "it is empty")
        if not fact.libraries.get(self.path):
            return missed("it is named, and no file is there")
        return MET

    def _look_at_maps(self, seen: SettingsObservation) -> list[Miss]:
        fact = seen.processes
        if fact is None or self.path not in fact.libraries:
            return unproven(NOT_ASKED if fact is None else fact.problem or NOT_ASKED)
        if fact.problem:
            return unproven(fact.problem)
        if not fact.processes:
            return unproven("no process was seen at all")
        real = fact.libraries[self.path]
        if not real:
            return missed("no such file")
        lacking: dict[str, list[ProcessFact]] = {}
        unread: list[ProcessFact] = []
        used: set[str] = set()
        for process in fact.processes:
            if not process.problem and real in process.maps.get(self.path, ()):
                continue
            exception = next((entry for entry in self.excepted if entry.fits(process)), None)
            if exception is not None:
                used.add(exception.text)
            elif process.problem:
                unread.append(process)
            else:
                lacking.setdefault(process.exe or process.name, []).append(process)
        misses = [self._lacks(program, processes) for program, processes in sorted(lacking.items())]
        if unread:
            said = f"the maps of {_which(unread)} cannot be read: {short(unread[0].problem)}"
            misses += unproven(said)
        return misses + [
            Miss(
                "every process that it is about has the library, or there is none",
                f"excepted because: {entry.reason}; remove it from the profile",
                Severity.REMARK,
                f"{self.path} without need excepted: {entry.text}",
            )
            for entry in self.excepted
            if entry.text not in used
        ]

    def _lacks(self, program: str, processes: list[ProcessFact]) -> Miss:
        others = sorted({path for process in processes for path in process.maps.get(self.path, ())})
        instead = f", which maps {short(', '.join(others))} instead" if others else ""
        hint = "a statically linked program cannot have it; one that started earlier must be started again"
        return Miss(f"{_which(processes)}{instead}", hint, subject=f"{self.path} in {program}")

    def _with_one_that_lacks_it(self, seen: SettingsObservation) -> SettingsObservation:
        fact = seen.processes or ProcessesFact(preload=TextFact(), libraries={})
        extra = ProcessFact(pid=0, name="osgates-control", exe=CONTROL)
        return seen.model_copy(update={"processes": fact.model_copy(update={"processes": (*fact.processes, extra)})})


def preloaded(text: str) -> list[str]:
    """The entries of /etc/ld.so.preload: separated by white space or colons, ``#`` begins a comment (ld.so(8))."""
    lines = [line.partition("#")[0] for line in text.splitlines()]
    return " ".join(lines).replace(":", " ").split()


def _without_preload(seen: SettingsObservation) -> SettingsObservation:
    fact = seen.processes or ProcessesFact(preload=TextFact(), libraries={})
    return seen.model_copy(update={"processes": fact.model_copy(update={"preload": TextFact()})})


def _which(processes: list[ProcessFact]) -> str:
    named = [
        f"{process.pid} ({process.name}{', ' + process.unit if process.unit else ''})" for process in processes[:8]
    ]
    more = f" and {len(processes) - 8} more" if len(processes) > 8 else ""
    return f"process {', '.join(named)}{more}"
