"""Gate `packages`: what is installed in the image, by its managers' data bases, and which files are in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pytest_osgates.checks.settings.demand import Lines, Reason, like, short
from pytest_osgates.model import Control, Finding, Gate, Model, Observation, Policy, Severity, State

Manager = Literal["dpkg", "rpm", "flatpak", "snap"]
# Those whose packages make up a system; the others come on top of it, and may not be there at all.
NATIVE: tuple[Manager, ...] = ("dpkg", "rpm")
LISTED = 20

_CONTROL = "osgates-control"
_DPKG_OK = "install ok installed"


class PackageSeen(Model):
    """A package in a data base. ``status``: dpkg's three words, else empty. ``missing``: some of the programs and
    libraries (data, if it has neither) that its list of files names and that are not in the image, ``missing_count``
    how many there are.
    """

    manager: Manager
    name: str
    version: str = ""
    arch: str = ""
    status: str = ""
    missing: tuple[str, ...] = ()
    missing_count: int = 0

    @property
    def is_installed(self) -> bool:
        """Wholly, and not chosen for removal."""
        return self.status in ("", _DPKG_OK, "hold ok installed")

    @property
    def remains(self) -> bool:
        """Removed, but for what dpkg(1) keeps until a purge: configuration, which cron and others may still run."""
        return self.status.endswith(" config-files")

    @property
    def is_gone(self) -> bool:
        """Nothing of it is there."""
        return self.status.endswith(" not-installed")

    @property
    def shown(self) -> str:
        """For findings."""
        return short(" ".join(part for part in (self.name, self.version, f"({self.manager})", self.status) if part))


class DatabaseSeen(Model):
    """A data base. ``problems``: why it may not tell everything. ``left``: packages that it does not know, but of
    which it keeps a list of files."""

    manager: Manager
    path: str
    packages: int
    problems: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


class FilesSeen(Model):
    """What fits one pattern: some of the paths, and how many there are."""

    paths: tuple[str, ...] = ()
    count: int = 0


class PackagesObservation(Observation):
    """``files``: by the patterns that were looked for."""

    state: State
    databases: tuple[DatabaseSeen, ...]
    packages: tuple[PackageSeen, ...]
    files: dict[str, FilesSeen] = Field(default_factory=dict)
    walked: int = 0

    @property
    def considered(self) -> int | None:
        return len(self.packages)


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not name.strip("*?"):
            raise ValueError(f"{name!r} is every package")
        if set(name) & set("/ "):
            raise ValueError(f"{name!r} is no name of a package")
    if not names:
        raise ValueError("it demands nothing: give names")
    return names


def _paths(paths: tuple[str, ...]) -> tuple[str, ...]:
    for path in paths:
        if not path.startswith("/") or path.endswith("/") or "//" in path or {".", ".."} & set(path.split("/")):
            raise ValueError(f"{path!r} is not an absolute path, with or without * and ?, like /usr/lib/snapd/*")
        if not path.strip("/*?"):
            raise ValueError(f"{path!r} is every file")
    if not paths:
        raise ValueError("it demands nothing: give paths")
    return paths


class PackageEntry(Model):
    """``[[gate.packages.excluded]]`` and ``[[gate.packages.needed]]``: names with ``*`` and ``?``."""

    names: Annotated[Lines, AfterValidator(_names)]
    manager: Manager | None = None
    reason: Reason

    @model_validator(mode="after")
    def _lower(self) -> PackageEntry:
        # dpkg's own names have no capital letters: such a name would fit nothing, and be taken for absent.
        for name in self.names:
            if self.manager == "dpkg" and name != name.lower():
                raise ValueError(f"{name!r}: names of Debian's packages are in lower case")
        return self


class FileEntry(Model):
    """``[[gate.packages.excluded_files]]``: paths with ``*`` (which also stands for ``/``) and ``?``."""

    paths: Annotated[Lines, AfterValidator(_paths)]
    reason: Reason


class PackagesPolicy(Policy):
    """``[gate.packages]``. ``remains``: what to make of an excluded package that was removed, but not purged."""

    excluded: tuple[PackageEntry, ...] = ()
    needed: tuple[PackageEntry, ...] = ()
    excluded_files: tuple[FileEntry, ...] = ()
    remains: Literal["violation", "remark"] = "violation"

    @model_validator(mode="after")
    def _consistent(self) -> PackagesPolicy:
        for wanted in (name for entry in self.needed for name in entry.names):
            for entry in self.excluded:
                pattern = next((name for name in entry.names if like(wanted, name)), None)
                if pattern is not None:
                    raise ValueError(f"{wanted!r} is needed, and excluded by {pattern!r}")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of files."""
        return tuple(dict.fromkeys(path for entry in self.excluded_files for path in entry.paths))


def judge(seen: PackagesObservation, policy: PackagesPolicy) -> list[Finding]:
    """First whether the data bases can be believed, then what is there but should not be, and the reverse."""
    findings = [*_demands(policy), *_databases(seen, policy)]
    blamed: set[tuple[str, str]] = set()
    for entry in policy.excluded:
        for finding in _excluded(seen, entry, policy.remains):
            # One package, one finding, however many patterns it fits.
            if finding.key not in blamed:
                blamed.add(finding.key)
                findings.append(finding)
    for entry in policy.needed:
        if _is_sound(seen, entry):
            for name in entry.names:
                findings += [finding for finding in _required(seen, entry, name) if finding not in findings]
    if policy.excluded_files and not seen.walked:
        findings.append(_unproven("no-files", "packages", "no file of the image was looked at", "all of them"))
    for file_entry in policy.excluded_files:
        for path in file_entry.paths:
            findings += _file(seen, path, file_entry.reason)
    named = {finding.subject for finding in findings}
    return findings + [finding for finding in _partly(seen) if finding.subject not in named]


def _demands(policy: PackagesPolicy) -> Iterator[Finding]:
    if not (policy.excluded or policy.needed or policy.excluded_files):
        yield _unproven(
            "no-demands", "packages", "the profile excludes nothing and requires nothing", "a list of either"
        )


def _unproven(rule: str, subject: str, seen: str, wanted: str) -> Finding:
    return Finding(rule=rule, subject=subject, seen=seen, wanted=wanted, severity=Severity.UNPROVEN)


def _databases(seen: PackagesObservation, policy: PackagesPolicy) -> Iterator[Finding]:
    for database in seen.databases:
        for problem in database.problems:
            yield _unproven("database", database.path, problem, "a data base that is whole and can be read")
        if database.manager in NATIVE and not database.packages and not database.problems:
            yield _unproven("database", database.path, "no package in it", "the packages of the image")
    native = [database for database in seen.databases if database.manager in NATIVE]
    if not native:
        yield _unproven(
            "no-database",
            "packages",
            "neither dpkg nor rpm has a data base in the image",
            "the packages of the image",
        )
    for manager in dict.fromkeys(database.manager for database in native):
        paths = [database.path for database in native if database.manager == manager]
        if len(paths) > 1:
            yield _unproven("two-databases", manager, ", ".join(paths), "one data base: the one that counts")
    there = {database.manager for database in native}
    asked = {entry.manager for entry in (*policy.excluded, *policy.needed)} & set(NATIVE)
    for absent in sorted(str(manager) for manager in asked - there):
        if native:
            yield _unproven("no-database", absent, f"the image has no data base of {absent}", "what the profile asks")


def _is_sound(seen: PackagesObservation, entry: PackageEntry) -> bool:
    """Whether what is not in the data bases is not there. Where it is not, the finding is that of the data base."""
    asked = [database for database in seen.databases if entry.manager in (None, database.manager)]
    return bool(seen.packages) and not any(database.problems for database in asked)


def _fitting(seen: PackagesObservation, entry: PackageEntry, name: str) -> list[PackageSeen]:
    return [
        package
        for package in seen.packages
        if entry.manager in (None, package.manager)
        and (
            _is_called(package.manager, package.name, name)
            or _is_called(package.manager, f"{package.name}:{package.arch}", name)
        )
    ]


def _is_called(manager: Manager, text: str, name: str) -> bool:
    """Whether a name fits that of a package: dpkg itself looks it up in lower case (lib/dpkg/pkg-hash.c)."""
    return like(text.lower(), name.lower()) if manager == "dpkg" else like(text, name)


def _excluded(seen: PackagesObservation, entry: PackageEntry, remains: str) -> Iterator[Finding]:
    for name in entry.names:
        for package in _fitting(seen, entry, name):
            if package.is_gone:
                continue
            yield Finding(
                rule="excluded-remains" if package.remains else "excluded-package",
                subject=package.name,
                seen=package.shown,
                wanted="purged" if package.remains else "not installed",
                hint=f"{'purge' if package.remains else 'remove'} it where the image is built; excluded because:"
                f" {entry.reason}",
                severity=Severity.REMARK if package.remains and remains == "remark" else Severity.VIOLATION,
            )
        for database in seen.databases:
            if entry.manager not in (None, database.manager):
                continue
            for left in database.left:
                if any(_is_called(database.manager, text, name) for text in (left, left.partition(":")[0])):
                    yield Finding(
                        rule="excluded-remains",
                        subject=left.partition(":")[0],
                        seen=f"in {database.path} it is not installed, but there is a list of its files",
                        wanted="nothing of it",
                        hint=f"excluded because: {entry.reason}",
                        severity=Severity.REMARK if remains == "remark" else Severity.VIOLATION,
                    )


def _required(seen: PackagesObservation, entry: PackageEntry, name: str) -> Iterator[Finding]:
    there = [package for package in _fitting(seen, entry, name) if not (package.is_gone or package.remains)]
    hint = f"required because: {entry.reason}"
    if not there:
        others = [package.shown for package in _fitting(seen, entry, name)]
        yield Finding(
            rule="required-package",
            subject=name,
            seen=short(", ".join(others)) or "not installed",
            wanted="installed",
            hint=hint,
        )
        return
    for package in there:
        if not package.is_installed:
            yield Finding(
                rule="required-partly", subject=package.name, seen=package.shown, wanted=_DPKG_OK, hint=hint
            )
        elif package.missing_count:
            yield Finding(
                rule="required-files",
                subject=package.name,
                seen=f"{package.missing_count} of the files that it needs are not in the image: "
                f"{short(', '.join(package.missing))}",
                wanted="all that it installed",
                hint=hint,
            )


def _file(seen: PackagesObservation, path: str, reason: str) -> Iterator[Finding]:
    found = seen.files.get(path)
    if found is None:
        yield _unproven("excluded-file", path, "it was not looked for in this observation", "not in the image")
    elif found.count:
        more = f" and {found.count - len(found.paths)} more" if found.count > len(found.paths) else ""
        yield Finding(
            rule="excluded-file",
            subject=path,
            seen=f"{short(', '.join(found.paths))}{more}",
            wanted="not in the image",
            hint=f"excluded because: {reason}",
        )


def _partly(seen: PackagesObservation) -> Iterator[Finding]:
    for package in seen.packages:
        if not (package.is_installed or package.is_gone):
            yield Finding(
                rule="removed" if package.remains else "partly-installed",
                subject=package.name,
                seen=package.shown,
                wanted="installed, or purged",
                severity=Severity.REMARK,
            )


def compare(before: PackagesObservation, now: PackagesObservation) -> list[str]:
    """Packages that came, went, or are of another version or status."""
    sides = [
        {f"{p.manager} {p.name}:{p.arch}": " ".join(filter(None, (p.version, p.status))) for p in seen.packages}
        for seen in (before, now)
    ]
    lines = []
    for package in dict.fromkeys((*sides[0], *sides[1])):
        then, since = (side.get(package, "not there") for side in sides)
        if then != since:
            lines.append(f"{package}: {then or 'there'} -> {since or 'there'}")
    return lines


Sabotage = Callable[[PackagesObservation], PackagesObservation]


def controls(seen: PackagesObservation, policy: PackagesPolicy) -> tuple[Control[PackagesObservation], ...]:
    """One for each demand that is met: what is excluded is planted, what is required is taken away."""
    broken = {finding.key for finding in judge(seen, policy)}
    made = [
        Control("no data base", _without_databases, "no-database", "packages", Severity.UNPROVEN),
        *(
            [Control("no file", _unwalked, "no-files", "packages", Severity.UNPROVEN)]
            if policy.excluded_files
            else []
        ),
        Control("a damaged data base", _damaged, "database", f"/{_CONTROL}", Severity.UNPROVEN),
    ]
    for entry in policy.excluded:
        for name in entry.names:
            package = _sample(seen, entry, name)
            made.append(Control(f"{name} is installed", _planted(package), "excluded-package", package.name))
            if policy.remains == "violation" and package.manager == "dpkg":
                left = package.model_copy(update={"status": "deinstall ok config-files"})
                made.append(Control(f"{name} is not purged", _planted(left), "excluded-remains", left.name))
    for entry in policy.needed:
        for name in entry.names if _is_sound(seen, entry) else ():
            made.append(Control(f"{name} is gone", _without(entry, name), "required-package", name))
            package = _sample(seen, entry, name)
            if package.manager == "dpkg":
                half = package.model_copy(update={"status": "install reinstreq half-installed"})
                made.append(Control(f"{name} is half installed", _planted(half), "required-partly", half.name))
    for path in policy.patterns:
        made.append(Control(f"{path} is there", _with_file(path), "excluded-file", path))
    return tuple(control for control in made if (control.rule, control.subject) not in broken)


def _sample(seen: PackagesObservation, entry: PackageEntry, name: str) -> PackageSeen:
    native = [database.manager for database in seen.databases if database.manager in NATIVE]
    manager: Manager = entry.manager or (native[0] if native else "dpkg")
    plain = name.replace("*", "x").replace("?", "x")
    bare, _, arch = plain.partition(":")
    status = _DPKG_OK if manager == "dpkg" else ""
    return PackageSeen(manager=manager, name=bare, version="0", arch=arch, status=status)


def _planted(package: PackageSeen) -> Sabotage:
    return lambda seen: seen.model_copy(update={"packages": (*seen.packages, package)})


def _without(entry: PackageEntry, name: str) -> Sabotage:
    def sabotage(seen: PackagesObservation) -> PackagesObservation:
        gone = _fitting(seen, entry, name)
        return seen.model_copy(update={"packages": tuple(p for p in seen.packages if p not in gone)})

    return sabotage


def _with_file(pattern: str) -> Sabotage:
    def sabotage(seen: PackagesObservation) -> PackagesObservation:
        planted = FilesSeen(paths=(pattern.replace("*", "x").replace("?", "x"),), count=1)
        return seen.model_copy(update={"files": {**seen.files, pattern: planted}})

    return sabotage


def _without_databases(seen: PackagesObservation) -> PackagesObservation:
    return seen.model_copy(update={"databases": (), "packages": ()})


def _unwalked(seen: PackagesObservation) -> PackagesObservation:
    return seen.model_copy(update={"walked": 0})


def _damaged(seen: PackagesObservation) -> PackagesObservation:
    damaged = DatabaseSeen(manager="dpkg", path=f"/{_CONTROL}", packages=1, problems=("it breaks off",))
    return seen.model_copy(update={"databases": (*seen.databases, damaged)})


GATE = Gate(
    name="packages",
    title="what is to be installed is there, what is excluded is not",
    states=(State.IMAGE,),
    observation=PackagesObservation,
    policy=PackagesPolicy,
    judge=judge,
    controls=controls,
    compare=compare,
)
