"""Gates from outside: Python files that a profile names, and installed packages (entry points ``osgates.gates``).

A gate's file holds the gate, ``GATE = Gate(...)``, and its test. One that the profile names is read once: the bytes
whose SHA-256 the evidence records are the bytes that are run, no cached bytecode of another day. All of this is the
user's own code, named by the user's own profile or installed by the user; none is ever loaded out of an image or out
of evidence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import keyword
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from pytest_osgates.checks.registry import GATES
from pytest_osgates.model import AnyGate, Gate, Observation, Policy, State
from pytest_osgates.profiles.origin import Origin, OutsideGate
from pytest_osgates.profiles.schema import GATE_NAME, GateCommon
from pytest_osgates.vm.errors import UsageError

GROUP = "osgates.gates"
ATTRIBUTE = "GATE"
# pytest's own markers, and words of its -m expressions: a gate of this name could not be chosen, or would be skipped.
RESERVED = frozenset(
    {"filterwarnings", "parametrize", "skip", "skipif", "usefixtures", "xfail", "tryfirst", "trylast"}
    | {word.lower() for word in keyword.kwlist}
)
_DIGEST = "__osgates_sha256__"


@dataclass(frozen=True)
class _Found:
    """A file that must hold a gate. `path` is how the profile leads to it, `file` what that resolves to."""

    path: str
    file: Path


def load_gates(profile: Path, entries: Sequence[str], named: Collection[str], *, at: str) -> dict[str, OutsideGate]:
    """Every gate below the profile's ``gates``, and those installed ones that it has a section for (`named`).

    `at` says where in the profile that is, to begin a message with.

    :raise UsageError: a path that is not there, a file that cannot be loaded or holds no gate, a name that is a
        built-in gate's or that two have, a gate in the profile's own directories for which it has no section.
    """
    gates: dict[str, OutsideGate] = {}
    for found in _files(profile, entries, at):
        loaded = _from_file(found, profile)
        _refuse_clash(loaded.gate.name, f"{profile}: {found.path}", gates)
        if loaded.gate.name not in named:
            raise UsageError(
                f"{profile}: {found.path} holds the gate {loaded.gate.name!r}, for which there is no section",
                remedy=f"add [gate.{loaded.gate.name}] (with required = false if a launch does not need it),"
                " or name single files in gates",
            )
        gates[loaded.gate.name] = loaded
    return {**gates, **_installed(gates, named)}


def _refuse_clash(name: str, where: str, gates: Mapping[str, OutsideGate]) -> None:
    if name in GATES:
        raise UsageError(
            f"{where} holds a gate {name!r}, which is the name of a built-in one",
            remedy="no gate can be replaced: give it another name",
        )
    if name in gates:
        raise UsageError(
            f"{where} holds a gate {name!r}, and so does {gates[name].origin.where}",
            remedy="give one of them another name, or leave one out",
        )


# -- files that the profile names ------------------------------------------------------------------------------------


def _files(profile: Path, entries: Iterable[str], at: str) -> list[_Found]:
    """The files below each entry, each once, whatever links lead to it."""
    found: dict[Path, _Found] = {}
    for entry in entries:
        where = f"{at} gates: {entry!r}"
        remedy = "give a directory with test_*.py, or one such file, relative to the profile"
        if not entry or "\0" in entry:
            raise UsageError(f"{where} is no path", remedy=remedy)
        path = profile.parent / entry
        try:
            if path.is_dir():
                files = sorted(path.glob("test_*.py"))
            elif path.is_file() and path.suffix == ".py":
                files = [path]
            else:
                how = "is neither a directory nor a Python file" if path.exists() else "does not exist"
                raise UsageError(f"{where} {how}", remedy=remedy)
            if not files:
                raise UsageError(f"{where} has no test_*.py", remedy=remedy)
            for file in files:
                resolved = file.resolve(strict=True)
                if not resolved.is_file():
                    raise UsageError(f"{where}: {file.name} is not a regular file", remedy=remedy)
                found.setdefault(resolved, _Found(os.path.relpath(file, profile.parent), resolved))
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{where} cannot be read: {error}", remedy=remedy) from error
    return list(found.values())


def _from_file(found: _Found, profile: Path) -> OutsideGate:
    where = f"{profile}: {found.path}"
    raw = _bytes(found.file, where)
    module = _guarded(lambda: _execute(found.file, raw), where, found.file)
    gate = _checked(vars(module).get(ATTRIBUTE), where, holds=ATTRIBUTE in vars(module))
    origin = Origin(path=found.path, sha256=hashlib.sha256(raw).hexdigest(), beside=_beside(found.file, where))
    return OutsideGate(gate, origin, module, found.file)


def _bytes(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from error


def _beside(file: Path, where: str) -> dict[str, str]:
    """Digests of the helpers of a gate; other gates in the directory stand for themselves."""
    return {
        path.name: hashlib.sha256(_bytes(path, f"{where}: {path.name} beside it")).hexdigest()
        for path in sorted(file.parent.glob("*.py"))
        if path != file and not path.name.startswith("test_") and path.is_file()
    }


class _BytesLoader(SourceFileLoader):
    """Runs the bytes that were read, and no cached bytecode."""

    def __init__(self, name: str, path: str, raw: bytes) -> None:
        super().__init__(name, path)
        self._raw = raw

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self._raw, self.path)
        return code


def _execute(file: Path, raw: bytes) -> ModuleType:
    """`raw`, which was read from `file`, as a module.

    Its directory is a package with a name of its own, so that files of one name in two directories do not meet, and
    ``from .helpers import x`` finds what lies beside it.
    """
    package = f"osgates_gates_{hashlib.sha256(os.fsencode(file.parent)).hexdigest()[:16]}"
    if package not in sys.modules:
        folder = ModuleSpec(package, None, is_package=True)
        folder.submodule_search_locations = [str(file.parent)]
        sys.modules[package] = importlib.util.module_from_spec(folder)
    name = f"{package}.{file.stem}"
    digest = hashlib.sha256(raw).hexdigest()
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, _DIGEST, "") == digest:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file, loader=_BytesLoader(name, str(file), raw))
    if spec is None or spec.loader is None:
        raise ImportError(f"Python has no way to load {file.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    setattr(module, _DIGEST, digest)
    return module


def _guarded(load: Callable[[], ModuleType], where: str, file: Path | None) -> ModuleType:
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Not Exception alone: sys.exit() and pytest.skip() are none, and must not end or empty a run in silence.
        raise UsageError(
            f"{where} cannot be loaded: {_broke(error, file)}",
            remedy="mend it, or take it out of the profile; its gate cannot be judged",
        ) from error


def _broke(error: BaseException, file: Path | None) -> str:
    """What went wrong, and in which line of `file`."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{'' if line is None else f'line {line}: '}{type(error).__name__}" + (f": {said}" if said else "")


# -- installed gates -------------------------------------------------------------------------------------------------


def _installed(gates: Mapping[str, OutsideGate], named: Collection[str]) -> dict[str, OutsideGate]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        _refuse_clash(entry.name, _describe(entry), gates)
        if entry.name in found:
            raise UsageError(
                f"{_describe(entry)} and {_describe(found[entry.name])} both hold a gate {entry.name!r}",
                remedy="uninstall one of them",
            )
        found[entry.name] = entry
    # Others are not imported: a package that this profile has no use for cannot break it.
    return {name: _from_entry_point(entry) for name, entry in found.items() if name in named}


def _describe(entry: EntryPoint) -> str:
    distribution = _distribution(entry)
    return f"the entry point {entry.name} = {entry.value!r}" + (f" of {distribution}" if distribution else "")


def _distribution(entry: EntryPoint) -> str:
    return "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _from_entry_point(entry: EntryPoint) -> OutsideGate:
    where = _describe(entry)
    name, colon, attribute = entry.value.partition(":")
    if not (name and colon and attribute.strip().isidentifier()):
        raise UsageError(f"{where} is not MODULE:{ATTRIBUTE}", remedy="name the module that holds gate and test")
    name, attribute = name.strip(), attribute.strip()
    module = _guarded(lambda: importlib.import_module(name), where, None)
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(
            f"{where}: {name} is not a Python file, so its tests cannot be run",
            remedy="name the module that holds gate and test, installed as files",
        )
    file = path.resolve()
    gate = _checked(getattr(module, attribute, None), where, holds=hasattr(module, attribute), attribute=attribute)
    if gate.name != entry.name:
        raise UsageError(f"{where} leads to a gate {gate.name!r}", remedy="give both the same name")
    origin = Origin(
        path="/".join((*name.split(".")[:-1], file.name)),
        sha256=hashlib.sha256(_bytes(file, where)).hexdigest(),
        # A single module lies beside whatever else is installed.
        beside=_beside(file, where) if "." in name else {},
        entry_point=entry.value,
        distribution=_distribution(entry),
    )
    return OutsideGate(gate, origin, module, file)


# -- what is a gate --------------------------------------------------------------------------------------------------


def _checked(found: object, where: str, *, holds: bool, attribute: str = ATTRIBUTE) -> AnyGate:
    """`found` as a gate.

    :raise UsageError: it is none, or one that could not be judged or chosen.
    """
    if not holds:
        raise UsageError(
            f"{where} holds no {attribute}",
            remedy=f"write {attribute} = Gate(...) in it; a file without a gate must not be called test_*.py",
        )
    if not isinstance(found, Gate):
        raise UsageError(
            f"{where}: {attribute} is {type(found).__name__}, not a Gate", remedy=f"write {attribute} = Gate(...)"
        )
    for wrong in _faults(found):
        raise UsageError(f"{where}: {wrong}", remedy="see docs/writing-a-gate.md")
    return found


def _faults(gate: Gate[Any, Any]) -> Iterable[str]:
    # Nothing says that its author runs a type checker.
    name, title, states = (cast("object", value) for value in (gate.name, gate.title, gate.states))
    if not (isinstance(name, str) and GATE_NAME.fullmatch(name)):
        yield f"{name!r} is not a gate's name: lower case letters, digits and dashes"
    elif name in RESERVED:
        yield f"a gate cannot be called {name!r}, which means something else to pytest"
    if not isinstance(title, str) or not title:
        yield "the gate has no title"
    if not isinstance(states, tuple) or not states or not all(isinstance(state, State) for state in states):
        yield "the gate's states are not a tuple of State"
    for what, kind in (("observation", Observation), ("policy", Policy)):
        model = getattr(gate, what)
        if not (isinstance(model, type) and issubclass(model, kind)):
            yield f"the gate's {what} is not a class made from {kind.__name__}"
        elif what == "policy" and (taken := sorted(set(model.model_fields) & set(GateCommon.model_fields))):
            yield f"the policy has {', '.join(taken)}, which every gate has already"
    if not callable(cast("object", gate.judge)):
        yield "the gate's judge is not a function"
