"""What is demanded of the kernel: sysctls, its command line, SELinux, lockdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, StrictStr, model_validator

from pytest_osgates.checks.settings.cmdline import Parameter, parse, same_name
from pytest_osgates.checks.settings.demand import (
    MET,
    NOT_ASKED,
    Demand,
    Entry,
    Line,
    Miss,
    Questions,
    either,
    like,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import SelinuxFact, SettingsObservation, SysctlFact, TextFact
from pytest_osgates.model import Severity

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_PARAMETER = re.compile(r"[^\s\"=*?]+")
_SWAP = str.maketrans("./", "/.")
_NUMBER = re.compile(r"-?\d{1,19}", re.ASCII)
CONTROL = "osgates-control"


def sysctl_path(name: str) -> str:
    """The file below /proc/sys that a name means, as sysctl.d(5) has it: where a slash comes first, slashes separate
    and dots stay; where a dot comes first, it is the other way round.

    :raise ValueError: it is no name of a sysctl.
    """
    separators = [char for char in name if char in "./"]
    path = name.translate(_SWAP) if separators[:1] == ["."] else name
    parts = path.split("/")
    if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"{name!r} is no name of a sysctl, like kernel.kptr_restrict or net/ipv4/conf/eth0.1/x")
    return path


def sysctl_name(path: str) -> str:
    """The dotted name of a file below /proc/sys."""
    return path.translate(_SWAP)


def _by_path(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = sysctl_path(name)
        if path in found:
            raise ValueError(f"{name} is named twice")
        if value == ():
            raise ValueError(f"{name}: an empty list, so that no value would do")
        found[path] = value
    return found


def _no_booleans(value: object) -> object:
    entries = value if isinstance(value, list) else [value]
    if any(isinstance(entry, bool) for entry in entries):
        raise ValueError("its value is a number or a text, not true or false")
    return _no_table(value)


def _no_table(value: object) -> object:
    """TOML takes a name with dots for tables in tables."""
    if isinstance(value, dict):
        raise ValueError('a name with dots stands in quotes, like "kernel.kptr_restrict" = 2')  # noqa: TRY004  (pydantic makes a message of it)
    return value


def _texts(value: object) -> object:
    """Numbers are good enough for texts."""
    _no_booleans(value)
    if isinstance(value, list):
        return [str(entry) if isinstance(entry, int) else entry for entry in value]
    return str(value) if isinstance(value, int) else value


Value = Annotated[StrictInt | StrictStr | tuple[StrictInt | StrictStr, ...], BeforeValidator(_no_booleans)]


Text = Annotated[StrictStr | tuple[StrictStr, ...], BeforeValidator(_texts)]


class SysctlEntry(Entry):
    """``[[gate.settings.sysctl]]``: ``values``: one value, or a list of which any will do; ``at_least``: a number."""

    values: Annotated[dict[str, Value], AfterValidator(_by_path)] = Field(default_factory=dict)
    at_least: Annotated[dict[str, Annotated[StrictInt, BeforeValidator(_no_booleans)]], AfterValidator(_by_path)] = (
        Field(default_factory=dict)
    )

    @model_validator(mode="after")
    def _demands_something(self) -> SysctlEntry:
        if not (self.values or self.at_least):
            raise ValueError("it demands nothing: give values or at_least")
        return self

    def ask(self, questions: Questions) -> None:
        questions.sysctls.update(dict.fromkeys([*self.values, *self.at_least]))

    def demands(self) -> Iterator[Demand]:
        for path, value in self.values.items():
            wanted = value if isinstance(value, tuple) else (value,)
            yield self._demand(path, either(tuple(map(str, wanted))), partial(_any, wanted=wanted))
        for path, least in self.at_least.items():
            yield self._demand(path, f"at least {least}", partial(_at_least, least=least))

    def _demand(self, path: str, wanted: str, fits: Callable[[str], bool]) -> Demand:
        def look(seen: SettingsObservation) -> list[Miss]:
            fact = seen.sysctls.get(path)
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            if fact.value is None:
                return missed("no such sysctl", "the module or kernel option that brings it may be missing")
            return MET if fits(fact.value) else missed(short(fact.value) or "nothing")

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            return seen.model_copy(update={"sysctls": {**seen.sysctls, path: SysctlFact(value=CONTROL)}})

        return Demand("sysctl", sysctl_name(path), wanted, self.reason, look, spoil)


def _any(seen: str, wanted: tuple[int | str, ...]) -> bool:
    words = seen.split()
    for value in wanted:
        if isinstance(value, int):
            if len(words) == 1 and _NUMBER.fullmatch(words[0]) and int(words[0]) == value:
                return True
        elif words == value.split():
            return True
    return False


def _at_least(seen: str, least: int) -> bool:
    words = seen.split()
    return len(words) == 1 and _NUMBER.fullmatch(words[0]) is not None and int(words[0]) >= least


def _parameter_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if "=" in name:
            head, _, tail = name.partition("=")
            raise ValueError(f"{name!r} has a value: write values = {{ {head} = {tail!r} }}")
        if not _PARAMETER.fullmatch(name):
            raise ValueError(f"{name!r} is no kernel parameter")
    return names


def _parameter_values(values: dict[str, Any]) -> dict[str, Any]:
    _parameter_names(tuple(values))
    for name, value in values.items():
        if value == ():
            raise ValueError(f"{name}: an empty list, so that no value would do")
    return values


def _parameters(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not _PARAMETER.fullmatch(text.partition("=")[0]):
            raise ValueError(f"{text!r} is no kernel parameter")
    return texts


class ParameterEntry(Entry):
    """``[[gate.settings.parameter]]``: kernel parameters.

    ``present``: given, and without a value where it is given last. ``values``: the value that is given last; one, or
    a list of which any will do, with ``*`` and ``?``. ``absent``: ``NAME``, or ``NAME=VALUE`` likewise: nowhere.
    """

    present: Annotated[tuple[Line, ...], AfterValidator(_parameter_names)] = ()
    values: Annotated[dict[str, Text], AfterValidator(_parameter_values)] = Field(default_factory=dict)
    absent: Annotated[tuple[Line, ...], AfterValidator(_parameters)] = ()

    @model_validator(mode="after")
    def _demands_something(self) -> ParameterEntry:
        if not (self.present or self.values or self.absent):
            raise ValueError("it demands nothing: give present, values or absent")
        return self

    def ask(self, questions: Questions) -> None:
        questions.command_line = True

    def demands(self) -> Iterator[Demand]:
        for name in self.present:
            yield self._demand(name, f"{name}, without a value", _is_bare, f"{name}={CONTROL}")
        for name, value in self.values.items():
            values = (value,) if isinstance(value, str) else value
            wanted = either(tuple(f"{name}={entry}" for entry in values))
            yield self._demand(name, wanted, partial(_has, values=values), name)
        for text in self.absent:
            yield self._absent(text)

    def _demand(self, name: str, wanted: str, fits: Callable[[Parameter], bool], spoiled: str) -> Demand:
        def judge(given: list[Parameter]) -> list[Miss]:
            mine = [p for p in given if same_name(p.name) == same_name(name) and not p.for_init]
            said = " ".join(p.text for p in mine)
            if not (mine and fits(mine[-1])):
                return missed(said or "it is not given")
            if len({p.value for p in mine}) > 1:
                return [Miss(f"{said}: given more than once; the last one counts", severity=Severity.REMARK)]
            return MET

        look, spoil = _on_the_line(judge, lambda line: spoiled)
        return Demand("parameter", same_name(name), wanted, self.reason, look, spoil, thing=same_name(name))

    def _absent(self, text: str) -> Demand:
        name, equals, value = text.partition("=")

        def judge(given: list[Parameter]) -> list[Miss]:
            mine = [
                p.text for p in given if same_name(p.name) == same_name(name) and (not equals or _has(p, (value,)))
            ]
            return missed(" ".join(mine)) if mine else MET

        planted = f'{name}="{value}"' if equals else name
        look, spoil = _on_the_line(judge, lambda line: f"{planted} {line}")
        subject = f"{same_name(name)}{equals}{value}"
        return Demand("parameter", subject, f"no {text}", self.reason, look, spoil, thing=subject, gone=True)


def _is_bare(parameter: Parameter) -> bool:
    return parameter.value is None


def _has(parameter: Parameter, values: tuple[str, ...]) -> bool:
    given = parameter.value
    return given is not None and any(like(given, value) for value in values)


def _on_the_line(
    judge: Callable[[list[Parameter]], list[Miss]], spoiled: Callable[[str], str]
) -> tuple[Callable[[SettingsObservation], list[Miss]], Callable[[SettingsObservation], SettingsObservation]]:
    def look(seen: SettingsObservation) -> list[Miss]:
        fact = seen.command_line
        if fact is None or fact.problem or fact.text is None:
            return unproven(NOT_ASKED if fact is None else fact.problem or "there is no /proc/cmdline")
        if "\ufffd" in fact.text:
            return unproven("/proc/cmdline is not UTF-8")
        return judge(parse(fact.text))

    def spoil(seen: SettingsObservation) -> SettingsObservation:
        line = "" if seen.command_line is None else seen.command_line.text or ""
        return seen.model_copy(update={"command_line": TextFact(text=spoiled(line))})

    return look, spoil


SELINUX_MODES = {"1": "enforcing", "0": "permissive"}


class SelinuxEntry(Entry):
    """``[[gate.settings.selinux]]``: ``mode``, and the name of the configured ``policy``."""

    mode: Literal["enforcing", "permissive", "disabled"] | None = None
    policy: Line | None = None

    @model_validator(mode="after")
    def _demands_something(self) -> SelinuxEntry:
        if self.mode is None and self.policy is None:
            raise ValueError("it demands nothing: give mode or policy")
        if self.mode == "disabled" and self.policy is not None:
            raise ValueError("SELinux that is disabled has no policy in force")
        return self

    def ask(self, questions: Questions) -> None:
        questions.selinux = True

    def demands(self) -> Iterator[Demand]:
        if self.mode is not None:
            wanted = self.mode

            def judge_mode(fact: SelinuxFact) -> list[Miss]:
                mode = SELINUX_MODES.get(fact.enforce) if fact.known else "disabled"
                if mode is None:
                    return unproven(f"/sys/fs/selinux/enforce says {short(fact.enforce)!r}")
                return MET if mode == wanted else missed(mode)

            other = SelinuxFact() if wanted != "disabled" else SelinuxFact(known=True, enforce="1")
            yield self._demand("mode", wanted, judge_mode, other)
        if self.policy is not None:
            name = self.policy

            def judge_policy(fact: SelinuxFact) -> list[Miss]:
                if not fact.known:
                    return missed("SELinux is disabled")
                return MET if fact.policy == name else missed(short(fact.policy) or "none is named")

            other = SelinuxFact(known=True, enforce="1", policy=CONTROL)
            yield self._demand("policy", name, judge_policy, other)

    def _demand(
        self, subject: str, wanted: str, judge: Callable[[SelinuxFact], list[Miss]], other: SelinuxFact
    ) -> Demand:
        def look(seen: SettingsObservation) -> list[Miss]:
            fact = seen.selinux
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            return judge(fact)

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            return seen.model_copy(update={"selinux": other})

        return Demand("selinux", subject, wanted, self.reason, look, spoil)


LOCKDOWN_MODES = ("none", "integrity", "confidentiality")  # each includes the one before it


class LockdownEntry(Entry):
    """``[[gate.settings.lockdown]]``: the least ``mode`` of kernel_lockdown(7)."""

    mode: Literal["integrity", "confidentiality"]

    def ask(self, questions: Questions) -> None:
        questions.lockdown = True

    def demands(self) -> Iterator[Demand]:
        enough = LOCKDOWN_MODES[LOCKDOWN_MODES.index(self.mode) :]

        def look(seen: SettingsObservation) -> list[Miss]:
            fact = seen.lockdown
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            if fact.text is None:
                return missed("the kernel has no lockdown", "CONFIG_SECURITY_LOCKDOWN_LSM, and lockdown in lsm=")
            marked = re.findall(r"\[(\w+)\]", fact.text)
            if len(marked) != 1 or marked[0] not in LOCKDOWN_MODES:
                return unproven(f"/sys/kernel/security/lockdown says {short(fact.text)!r}")
            return MET if marked[0] in enough else missed(marked[0])

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            return seen.model_copy(update={"lockdown": TextFact(text="[none] integrity confidentiality")})

        yield Demand("lockdown", "mode", either(enough), self.reason, look, spoil)
