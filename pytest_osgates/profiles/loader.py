"""Reads distro profiles, and says what is wrong with one in words that name the key and the remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import typing
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pytest_osgates.checks.registry import GATES
from pytest_osgates.model import AnyGate, Contradiction, Policy, State
from pytest_osgates.profiles.origin import OutsideGate
from pytest_osgates.profiles.outside import load_gates
from pytest_osgates.profiles.schema import (
    GATE_NAME,
    KNOWN_GATES,
    ROW_NAME,
    SCHEMA,
    GateCommon,
    GateSection,
    Profile,
    ProfileFile,
)
from pytest_osgates.profiles.source import ProfileText
from pytest_osgates.vm.errors import UsageError

SEE = "see docs/profiles.md for every key and its meaning"
# pydantic's "Input should be 'bios', 'uefi' or 'uefi-secureboot'".
_WORDS = re.compile(r"'([^']*)'")


def built_in() -> dict[str, Path]:
    """Names and files of the profiles that come along."""
    folder = Path(str(files("pytest_osgates.profiles")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def find(name: str) -> Path:
    """The file of a built-in profile, or `name` itself where it is a path.

    :raise UsageError: there is none; the nearest name is given.
    """
    known = built_in()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".toml" or "/" in name:
        # Whatever else lies there is said to be what it is when it is read.
        if os.path.lexists(name):
            return path
        near = _nearest(name, map(str, path.parent.glob("*.toml"))) if path.parent.is_dir() else ""
        raise UsageError(
            f"no distro profile at {name}{near}", remedy="give a TOML file or one of: " + ", ".join(known)
        )
    raise UsageError(
        f"no distro profile {name!r}{_nearest(name, known)}",
        remedy=f"use one of {', '.join(known)}, or a path to a TOML file",
    )


def detect(os_release: Mapping[str, str]) -> Path:
    """The built-in profile whose ``os_release`` fits that of the image.

    :raise UsageError: none or several fit.
    """
    fitting = []
    for path in built_in().values():
        wanted = _parse(ProfileText(path)).os_release
        if wanted and all(os_release.get(key) == value for key, value in wanted.items()):
            fitting.append(path)
    if len(fitting) == 1:
        return fitting[0]
    named = f"ID={os_release.get('ID', '?')!r}" if os_release else "no os-release"
    how = "several built-in profiles fit" if fitting else "no built-in profile fits"
    raise UsageError(
        f"{how} an image with {named}",
        remedy=f"name one: --iso-distro NAME|FILE.toml ({', '.join(built_in())})",
    )


def load(path: Path, *, code: bool = True) -> Profile:
    """Read and check one profile, and load the gates from outside that it names.

    Without `code` nothing below its ``gates`` is loaded, and whatever stands in the section of a gate that is not
    here is passed over: for a profile that lies in evidence, which may be anyone's.

    :raise UsageError: not TOML, an unknown key (with the nearest known one), a wrong value, a gate that cannot be
        loaded.
    """
    text = ProfileText(path)
    parsed = _parse(text)
    for name in parsed.gate:
        if not GATE_NAME.fullmatch(name):
            raise UsageError(
                f"{text.at('gate', name)} {name!r} is not a gate's name",
                remedy="use lower case letters, digits and dashes",
            )
    outside = load_gates(path, parsed.gates if code else (), parsed.gate, at=text.at("gates"))
    # Files beside a profile are looked at only where it is to be run by.
    beside = {"directory": path.absolute().parent} if code else None
    _check_values(parsed, text, outside, beside)
    firmwares = tuple(str(firmware) for firmware in parsed.machine.firmware)
    gates = {
        name: _section(name, table, text, firmwares, outside.get(name), beside, strict=code)
        for name, table in parsed.gate.items()
    }
    if not any(gate.required for gate in gates.values()):
        raise UsageError(f"{text.at('gate')} no gate is required", remedy="list the project's gates as [gate.NAME]")
    return Profile(
        name=parsed.name,
        title=parsed.title,
        os_release=parsed.os_release,
        machine=parsed.machine,
        boot=parsed.boot,
        login=parsed.login,
        install=parsed.install,
        gates=gates,
        sha256=hashlib.sha256(text.raw).hexdigest(),
        source=str(path),
    )


def _parse(text: ProfileText) -> ProfileFile:
    """The file as it is written.

    :raise UsageError: an unknown key, a wrong value, another schema.
    """
    data = text.data
    gates = data.get("gates", [])
    if isinstance(gates, dict):
        first = next(iter(gates), "NAME")
        raise UsageError(
            f"{text.at('gates', first)} [gates.{first}] is written [gate.{first}] in this version",
            remedy="rename every [gates.NAME] to [gate.NAME], also in [[gates.NAME.accept_...]];"
            ' gates = ["DIRECTORY"] says where gates of your own are',
        )
    if isinstance(gates, str):
        raise UsageError(
            f"{text.at('gates')} gates is a list of paths", remedy=f"write gates = [{json.dumps(gates)}]"
        )
    schema = data.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        # Before anything else is complained of: another version has other keys.
        raise UsageError(
            f"{text.at('schema')} schema is {schema}, this version knows {SCHEMA}",
            remedy="upgrade pytest-osgates" if schema > SCHEMA else f"write schema = {SCHEMA}",
        )
    return _validated(ProfileFile, data, text, ())


def _check_values(
    parsed: ProfileFile, text: ProfileText, outside: Mapping[str, OutsideGate], beside: dict[str, Any] | None
) -> None:
    """Unknown keys and wrong values of all gates at once.

    :raise UsageError: there are some.
    """
    found: list[tuple[int, str]] = []
    for name, table in parsed.gate.items():
        gate = outside[name].gate if name in outside else GATES.get(name)
        shared, own = _split(table)
        parts: list[tuple[type[BaseModel], dict[str, Any]]] = [(GateCommon, shared)]
        if gate is not None:
            parts.append((gate.policy, own))
        for model, data in parts:
            try:
                model.model_validate(data, context=beside)
            except ValidationError as error:
                found += _problems(model, error, text, ("gate", name), GateCommon)
            except Exception:  # noqa: BLE001, S112  (a gate's own code; told where that gate is made)
                continue
    if found:
        raise _wrong(text, found)


def _split(table: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A gate's section: the keys that every gate has, and its own."""
    shared = {key: value for key, value in table.items() if key in GateCommon.model_fields}
    return shared, {key: value for key, value in table.items() if key not in shared}


def _section(
    name: str,
    table: dict[str, Any],
    text: ProfileText,
    firmwares: tuple[str, ...],
    outside: OutsideGate | None,
    beside: dict[str, Any] | None,
    *,
    strict: bool,
) -> GateSection:
    where = f"gate.{name}"
    key = ("gate", name)
    shared, own = _split(table)
    common = _validated(GateCommon, shared, text, key)
    gate = GATES.get(name) if outside is None else outside.gate
    if gate is None:
        if own and strict:
            hint = "" if name in KNOWN_GATES else _nearest(name, KNOWN_GATES)
            keys = [each + ("" if hint else _nearest(each, GateCommon.model_fields)) for each in sorted(own)]
            at = text.at(*key) if hint else text.at(*key, min(own))
            raise UsageError(
                f"{at} [{where}] has {', '.join(keys)}, but this version has no gate {name!r}{hint}",
                remedy="until it has, only required, state and promise can be said of it;"
                ' or say where a gate of your own is: gates = ["DIRECTORY"]',
            )
        return GateSection(
            name=name,
            required=common.required,
            state=common.state or State.LIVE,
            promise=common.promise,
            policy=None,
            absent=f"this version of pytest-osgates has no gate {name!r}",
        )
    if gate.state_of_case is not None and common.state is not None:
        raise UsageError(
            f"{text.at(*key, 'state')} [{where}] names a state, but each of its entries names its own",
            remedy=f"remove state from [{where}]",
        )
    state = common.state or gate.states[0]
    if state not in gate.states:
        raise UsageError(
            f"{text.at(*key, 'state')} [{where}] state is {state}, but this gate judges {' or '.join(gate.states)}",
            remedy="set another state",
        )
    try:
        policy: Policy = _validated(gate.policy, own, text, key, also=GateCommon, beside=beside)
        rows = _rows(gate, policy, firmwares)
        row_states = {} if gate.state_of_case is None else {row: gate.state_of_case(row) for row in rows}
    except UsageError:
        raise
    except Exception as error:
        # Only a gate's own code can raise something else here.
        raise UsageError(
            f"{text.at(*key)} [{where}] breaks its gate: {type(error).__name__}: {error}",
            remedy="mend the gate" if outside is None else f"mend {outside.origin.where}",
        ) from error
    return GateSection(
        name=name,
        required=common.required,
        state=state,
        promise=common.promise or gate.title,
        policy=policy,
        row_states=row_states,
        rows=rows,
        gate=gate,
        outside=outside,
    )


def _rows(gate: AnyGate, policy: Policy, firmwares: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a gate's rows; each becomes the name of a test and of a file.

    :raise ValueError: they cannot.
    """
    rows = tuple(gate.cases(policy, firmwares))
    if rows != ("",):
        for row in rows:
            if not (isinstance(row, str) and ROW_NAME.fullmatch(row)):
                raise ValueError(f"{row!r} is not a row's name: letters, digits, '.', '_' and '-', at most 80")
    if len(set(rows)) != len(rows):
        raise ValueError(f"it names a row twice: {', '.join(rows)}")
    return rows


M = typing.TypeVar("M", bound=BaseModel)


def _validated(
    model: type[M],
    data: dict[str, Any],
    text: ProfileText,
    where: tuple[str, ...],
    also: type[BaseModel] | None = None,
    beside: dict[str, Any] | None = None,
) -> M:
    """`data`, which stands at `where`, as `model`; keys of `also` may stand there too. `beside`: for validators that
    look at files beside the profile.

    :raise UsageError: unknown keys and wrong values, all of them, each with its line.
    """
    try:
        return model.model_validate(data, context=beside)
    except ValidationError as error:
        raise _wrong(text, _problems(model, error, text, where, also)) from error


def _problems(
    model: type[BaseModel],
    error: ValidationError,
    text: ProfileText,
    where: tuple[str, ...],
    also: type[BaseModel] | None,
) -> list[tuple[int, str]]:
    return [_problem(model, entry, text, where, also) for entry in error.errors(include_url=False)]


def _wrong(text: ProfileText, problems: list[tuple[int, str]]) -> UsageError:
    """All `problems`, in the order of their lines."""
    said = [problem for _, problem in sorted(problems, key=lambda entry: entry[0])]
    return UsageError(f"{text.path}: " + "; ".join(dict.fromkeys(said)), remedy=SEE)


def _problem(
    model: type[BaseModel],
    entry: ErrorDetails,
    text: ProfileText,
    where: tuple[str, ...],
    also: type[BaseModel] | None,
) -> tuple[int, str]:
    """One thing that is wrong, after its (first) line: line, key, what it is and what was probably meant."""
    location = (*where, *entry["loc"])
    key = ".".join(map(str, location))
    cause = entry.get("ctx", {}).get("error")
    places = [(*where, *place) for place in cause.entries] if isinstance(cause, Contradiction) else [location]
    numbers = sorted({number for place in places if (number := text.line(*place)) is not None})
    line = f"line{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}: " if numbers else ""
    first = numbers[0] if numbers else 0
    if entry["type"] == "extra_forbidden":
        names = set(_fields_at(model, entry["loc"][:-1]))
        if also is not None and len(entry["loc"]) == 1:
            names |= set(also.model_fields)
        return first, f"{line}unknown key {key}{_nearest(str(entry['loc'][-1]), names)}"
    said = entry["msg"].removeprefix("Value error, ")
    meant = ""
    if entry["type"] in {"enum", "literal_error"} and isinstance(entry["input"], str):
        meant = _nearest(entry["input"], _WORDS.findall(str(entry.get("ctx", {}).get("expected", ""))))
    return first, f"{line}{key}: {said}{meant}"


def _fields_at(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Names that are known at `location` inside `model`."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _model_in(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
