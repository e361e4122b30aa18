"""Two builds for the gate `reproducible`: given as a file, or made here twice by the user's own command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_osgates.checks.divergence import ImageComparison, ImageFile
from pytest_osgates.checks.reproducible import Build, Pair, Probe, Published, ReproducibleObservation
from pytest_osgates.evidence import Evidence
from pytest_osgates.image.diff.probes import try_each
from pytest_osgates.image.digest import image_digest
from pytest_osgates.image.source import open_source
from pytest_osgates.observers.divergence import compare_images, text_of
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.errors import OsgatesError, UsageError
from pytest_osgates.vm.process import await_exit, end, spawn, which
from pytest_osgates.vm.text import one_line

# What is kept of a comparison in the observation; all of it is in the evidence beside.
MAX_KEPT = 2000
_MAX_SUMS = 1 << 20
_LOG_NAME = "builds/build-{}.log"
_GNU_SUM = re.compile(r"^([0-9a-fA-F]{64}) [ *](.+)$")
_BSD_SUM = re.compile(r"^SHA256 \((.+)\) = ([0-9a-fA-F]{64})$")
# A constant: what varies is given as arguments, never as text of the shell.
_WITH_UMASK = ("sh", "-c", 'umask "$1" && shift && exec "$@"', "sh")
_WITH_HOST_NAME = ("sh", "-c", 'hostname "$1" && shift && exec "$@"', "sh")


@dataclass(frozen=True)
class Wanted:
    """What the user gave: a second image; or a command and where its output is; a list of checksums; and the policy's
    deadline for one build, in seconds, and its variations."""

    rebuild: Path | None = None
    command: str = ""
    output: str = ""
    sums: Path | None = None
    deadline_s: float = 7200.0
    variations: tuple[str, ...] = ()


Render = Callable[[ImageComparison], str]
"""Makes a page for the evidence."""


def check(wanted: Wanted) -> None:
    """What can be checked before anything is built.

    :raise UsageError: a command without an output, or the reverse; an output outside of the build's directory.
    """
    if bool(wanted.command) != bool(wanted.output):
        missing = "--iso-build-output" if wanted.command else "--iso-build"
        raise UsageError(f"{missing} is missing", remedy="give --iso-build CMD and --iso-build-output GLOB together")
    if wanted.command:
        words(wanted.command)
        if Path(wanted.output).is_absolute() or ".." in Path(wanted.output).parts:
            raise UsageError(
                f"--iso-build-output {wanted.output!r} leads out of the build's directory",
                remedy="give a pattern relative to it, such as out/*.iso",
            )


def words(command: str) -> list[str]:
    """The words of a command, as a shell would split it; no shell runs it.

    :raise UsageError: quotes that do not end, or nothing at all.
    """
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--iso-build {command!r}: {error}", remedy="close the quotes") from error
    if not found:
        raise UsageError("--iso-build is empty")
    return found


def observe(
    image: Path, sha256: str, wanted: Wanted, evidence: Evidence, progress: ProgressLog, render: Render | None = None
) -> ReproducibleObservation:
    """Compare `image`, whose digest is `sha256`, with every other build that there is. `render` makes the page.

    :raise OsgatesError: the image itself cannot be read, or a program that a variation needs is missing.
    """
    check(wanted)
    pairs: list[Pair] = []
    builds: list[Build] = []
    if wanted.rebuild is not None:
        pairs.append(_pair(image, wanted.rebuild, "--iso-rebuild", evidence, progress, render))
    if wanted.command:
        with tempfile.TemporaryDirectory(prefix="osgates-build-") as scratch:
            made, kept = _build_twice(Path(scratch), wanted, evidence, progress)
            builds += made
            for build, path in zip(made, kept, strict=True):
                if path is not None:
                    pairs.append(_pair(image, path, f"build {build.number}", evidence, progress, render))
            if len(kept) == 2 and kept[0] is not None and kept[1] is not None:
                pairs = _not_one_file(pairs, kept[0], kept[1])
    probes: tuple[Probe, ...] = ()
    if pairs:
        probes = tuple(_probes(image, progress))
    return ReproducibleObservation(
        image=ImageFile(path=str(image), size=image.stat().st_size, sha256=sha256),
        pairs=tuple(pairs),
        builds=tuple(builds),
        published=None if wanted.sums is None else published(wanted.sums, image.name),
        probes=probes,
    )


def _not_one_file(pairs: list[Pair], one: Path, other: Path) -> list[Pair]:
    """Two builds that left one and the same file are one build."""
    why = same_file(one, other)
    if not why:
        return pairs
    return [
        pair.model_copy(update={"same_file": f"both builds left one file: {why}"})
        if pair.second == "build 2"
        else pair
        for pair in pairs
    ]


def same_file(a: Path, b: Path) -> str:
    """Why two paths are no two files; empty if they are two."""
    try:
        if b.is_symlink() and b.resolve() == a.resolve():
            return f"{b} is a symbolic link to {a}"
        if a.samefile(b):
            return (
                "they are one file under two names (a hard link)"
                if a.resolve() != b.resolve()
                else "it is the image itself"
            )
    except OSError as error:
        return f"it cannot be told whether they are two: {error.strerror}"
    return ""


def _pair(
    image: Path, other: Path, name: str, evidence: Evidence, progress: ProgressLog, render: Render | None
) -> Pair:
    why = same_file(image, other)
    if why:
        return Pair(second=name, same_file=why)
    begun = time.monotonic()

    def note(stage: str, fraction: float | None) -> None:
        progress.step(Step("reproducible", f"{name}: {one_line(stage, 100)}", time.monotonic() - begun))

    try:
        found = compare_images(image, other, note)
    except OsgatesError as error:
        return Pair(second=name, detail=str(error))
    if not found.equal:
        label = name.strip("-").replace(" ", "-")
        evidence.write(f"reproducible/{label}.json", found.model_dump_json(indent=1).encode())
        if render is not None:
            evidence.write(f"reproducible/{label}.html", render(found).encode())
    return Pair(second=name, comparison=_cut(found))


def _cut(found: ImageComparison) -> ImageComparison:
    more = max(0, len(found.differences) - MAX_KEPT)
    return found.model_copy(update={"differences": found.differences[:MAX_KEPT], "left_out": found.left_out + more})


def _probes(image: Path, progress: ProgressLog) -> Iterator[Probe]:
    begun = time.monotonic()
    with open_source(image) as source:
        for tried in try_each(source):
            progress.step(Step("reproducible", f"control: {tried.layer}", time.monotonic() - begun))
            yield Probe(layer=tried.layer, offset=tried.offset, found=tried.found, said=text_of(tried.said))


# -- checksums -------------------------------------------------------------------------------------------------------


def published(sums: Path, name: str) -> Published:
    """What a list in the form of sha256sum(1), of GNU or of BSD, says of the file `name`.

    :raise UsageError: it cannot be read, or is too large to be one.
    """
    try:
        with sums.open("rb") as file:
            raw = file.read(_MAX_SUMS + 1)
    except OSError as error:
        raise UsageError(f"--iso-sums {sums} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_SUMS:
        raise UsageError(f"--iso-sums {sums} has more than {_MAX_SUMS} bytes: it is no list of checksums")
    found = set()
    for line in raw.decode("utf-8", "replace").splitlines():
        if gnu := _GNU_SUM.match(line):
            digest, listed = gnu[1], gnu[2]
        elif bsd := _BSD_SUM.match(line):
            listed, digest = bsd[1], bsd[2]
        else:
            continue
        if listed.rpartition("/")[2] == name:
            found.add(digest.lower())
    if len(found) > 1:
        raise UsageError(
            f"--iso-sums {sums} has {len(found)} digests for {name}", remedy="give the list of one release"
        )
    return Published(file=sums.name, name=name, digest=found.pop() if found else "")


# -- builds ----------------------------------------------------------------------------------------------------------


def _build_twice(
    scratch: Path, wanted: Wanted, evidence: Evidence, progress: ProgressLog
) -> tuple[list[Build], list[Path | None]]:
    builds: list[Build] = []
    kept: list[Path | None] = []
    for number in (1, 2):
        variations = wanted.variations if number == 2 else ()
        with _directory(scratch, varied="path" in variations) as directory:
            build = _build(number, directory, wanted, variations, evidence, progress)
            path: Path | None = None
            if build.status == 0:
                build, path = _result(build, directory, wanted.output, scratch / f"result-{number}.iso")
        builds.append(build)
        kept.append(path)
        if path is None:
            # The second one would take as long and prove no more.
            break
    return builds, kept


@contextmanager
def _directory(scratch: Path, *, varied: bool) -> Iterator[Path]:
    """An empty directory of the same name for both builds, unless the path is to vary."""
    directory = scratch / ("build-of-another-path/deeper" if varied else "build")
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def varied_command(command: Sequence[str], variations: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a build with `variations`.

    :raise MissingTool: a program for one of them is not installed.
    """
    argv, env = list(command), {}
    # The innermost first: the clock is faked for the build alone.
    if "clock" in variations:
        faketime = which("faketime", remedy='install faketime, or take "clock" out of the profile\'s variations')
        argv = [faketime, "-f", "+398d", *argv]
    if "umask" in variations:
        argv = [*_WITH_UMASK, "0077", *argv]
    if "hostname" in variations:
        unshare = which("unshare", remedy='install util-linux, or take "hostname" out of the profile\'s variations')
        # Root needs no user namespace, in which it could give files to nobody but itself, as builders of images must.
        alone = ["--uts"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--uts"]
        argv = [unshare, *alone, *_WITH_HOST_NAME, "another-host-name", *argv]
    if "timezone" in variations:
        # reprotest's choice: as far from UTC as there is.
        env["TZ"] = "GMT+12"
    if "locale" in variations:
        env |= {"LANG": "fr_CH.UTF-8", "LC_ALL": "fr_CH.UTF-8", "LANGUAGE": "fr_CH:fr"}
    return argv, env


def _build(
    number: int,
    directory: Path,
    wanted: Wanted,
    variations: Sequence[str],
    evidence: Evidence,
    progress: ProgressLog,
) -> Build:
    argv, more = varied_command(words(wanted.command), variations)
    env: Mapping[str, str] = {**os.environ, "OSGATES_BUILD": str(number), **more}
    log = _LOG_NAME.format(number)
    evidence.write(log, b"")
    path = evidence.root / log
    begun = time.monotonic()
    ended = False
    with path.open("wb") as out:
        process = spawn(argv, stdout=out, stderr=out, cwd=directory, env=env)
        try:
            while True:
                elapsed = time.monotonic() - begun
                progress.step(Step("reproducible", f"build {number}: {_last_line(path)}", elapsed, wanted.deadline_s))
                if await_exit(process, min(1.0, max(0.0, wanted.deadline_s - elapsed))):
                    ended = True
                    break
                if time.monotonic() - begun >= wanted.deadline_s:
                    break
        finally:
            # With everything that it started and left running.
            code = end(process)
    status = code if ended else None
    detail = f"it took longer than the profile's {wanted.deadline_s:.0f} s" if status is None else ""
    if status:
        detail = f"its last line: {_last_line(path)}"
    return Build(
        number=number,
        command=wanted.command,
        directory=str(directory),
        variations=tuple(variations),
        status=status,
        seconds=round(time.monotonic() - begun, 1),
        log=log,
        detail=detail,
    )


def _last_line(path: Path) -> str:
    """The end of a log, for the eye."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return one_line(lines[-1], 120) if lines else ""


def _result(build: Build, directory: Path, output: str, target: Path) -> tuple[Build, Path | None]:
    """Move what the build left out of its directory; it must be one regular file that nobody else has."""

    def failed(why: str) -> tuple[Build, None]:
        return build.model_copy(update={"detail": why}), None

    found = sorted(directory.glob(output))
    if len(found) != 1:
        return failed(f"{len(found)} files like {output} in its directory, not one")
    status = found[0].lstat()
    if stat.S_ISLNK(status.st_mode):
        return failed(f"{found[0].name} is a symbolic link to {found[0].readlink()}: it may be no file of this build")
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return failed(f"{found[0].name} is no regular file, or empty")
    if status.st_nlink > 1:
        return failed(f"{found[0].name} has {status.st_nlink} names: it may be a file of another build")
    if directory.resolve() not in found[0].resolve().parents:
        return failed(f"{found[0].name} lies outside of the build's directory")
    found[0].replace(target)
    image = ImageFile(path=f"{build.directory}/{found[0].name}", size=status.st_size, sha256=image_digest(target))
    return build.model_copy(update={"image": image}), target
