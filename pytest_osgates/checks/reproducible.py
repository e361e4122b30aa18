"""Gate `reproducible`: two builds of one commit have one SHA-256; where they don't, what differs and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from pytest_osgates.checks.causes import FOLLOWS
from pytest_osgates.checks.divergence import ImageComparison, ImageFile
from pytest_osgates.model import Control, Finding, Gate, Model, Observation, Policy, Severity, State

Sabotage = Callable[["ReproducibleObservation"], "ReproducibleObservation"]
Variation = Literal["path", "umask", "timezone", "locale", "hostname", "clock"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Every ISO has these; a comparison that was not tried on them was not tried.
FEWEST_PROBES = ("volume descriptor", "directory record")


class Pair(Model):
    """Two files that should be one image, in bytes.

    `second` names where the other came from; `same_file` says why they are no two builds, empty if they are two.
    `comparison` is None where they could not be compared; `detail` then says why.
    """

    second: str
    same_file: str = ""
    comparison: ImageComparison | None = None
    detail: str = ""


class Build(Model):
    """One run of the build command. `status` is None if it had to be killed; `image` None: it left none, see
    `detail`."""

    number: int
    command: str
    directory: str
    variations: tuple[str, ...] = ()
    status: int | None = None
    seconds: float = 0.0
    log: str = ""
    image: ImageFile | None = None
    detail: str = ""


class Published(Model):
    """What a list of checksums says of the image; `digest` is empty where it says nothing."""

    file: str
    name: str
    digest: str = ""


class Probe(Model):
    """One byte of the image, flipped in memory and compared: whether that was found, and what was said of it."""

    layer: str
    offset: int
    found: bool
    said: str = ""


class ReproducibleObservation(Observation):
    """What the builds came to."""

    state: State = State.IMAGE
    image: ImageFile
    pairs: tuple[Pair, ...] = ()
    builds: tuple[Build, ...] = ()
    published: Published | None = None
    probes: tuple[Probe, ...] = ()

    @property
    def considered(self) -> int | None:
        return len(self.pairs)


class ReproduciblePolicy(Policy):
    """``[gate.reproducible]`` of a distro profile.

    ``deadline_s``: for one run of ``--iso-build``. ``variations``: what the second run differs in from the first,
    by the
    names that reprotest(1) has for them.
    """

    deadline_s: float = Field(default=7200.0, gt=0.0)
    variations: tuple[Variation, ...] = ()


def judge(seen: ReproducibleObservation, policy: ReproduciblePolicy) -> list[Finding]:
    """Equal digests of two files that are not the same file; nothing else is a PASS."""
    findings = _builds(seen, policy)
    if not seen.pairs:
        findings.append(
            _unproven(
                "nothing-to-compare",
                "image",
                "no second build",
                "give --iso-rebuild FILE, or --iso-build CMD and --iso-build-output GLOB",
            )
        )
    for pair in seen.pairs:
        findings += _pair(seen, pair)
    findings += _probes(seen)
    findings += _published(seen)
    return findings


def _unproven(rule: str, subject: str, said: str, hint: str = "", wanted: str = "two builds to compare") -> Finding:
    return Finding(rule=rule, subject=subject, seen=said, wanted=wanted, hint=hint, severity=Severity.UNPROVEN)


def _builds(seen: ReproducibleObservation, policy: ReproduciblePolicy) -> list[Finding]:
    findings = []
    for build in seen.builds:
        subject = f"build {build.number}"
        if build.status != 0 or build.image is None:
            how = "was killed" if build.status is None else f"ended with status {build.status}"
            said = f"{how} after {build.seconds:.0f} s; {build.detail}".rstrip("; ")
            findings.append(
                _unproven("build-failed", subject, said, f"see {build.log}", "a build that leaves one image")
            )
    varied = {name for build in seen.builds for name in build.variations}
    if seen.builds and (missing := [name for name in policy.variations if name not in varied]):
        findings.append(
            _unproven(
                "not-varied",
                ", ".join(missing),
                "both builds were made alike in this",
                wanted="builds that differ in what the profile names",
            )
        )
    return findings


def _pair(seen: ReproducibleObservation, pair: Pair) -> list[Finding]:
    if pair.same_file:
        return [
            _unproven(
                "same-file",
                pair.second,
                pair.same_file,
                "build it a second time, in a clean directory",
                "two files that were built apart",
            )
        ]
    found = pair.comparison
    if found is None:
        return [_unproven("not-compared", pair.second, pair.detail or "nothing was compared")]
    if found.a.sha256 != seen.image.sha256:
        return [
            _unproven(
                "other-image",
                pair.second,
                f"{found.a.sha256[:16]} was compared",
                "the image changed while the run went on",
                f"the image under test, {seen.image.sha256[:16]}",
            )
        ]
    if not all(_DIGEST.fullmatch(image.sha256) and image.size > 0 for image in (found.a, found.b)):
        return [_unproven("not-compared", pair.second, "a digest is missing, or an image is empty")]
    if found.a.sha256 == found.b.sha256 and found.a.size == found.b.size:
        return []
    findings = [
        Finding(
            rule="differs",
            subject=pair.second,
            seen=f"{found.b.sha256}: {len(found.differences) + found.left_out} differences in"
            f" {', '.join(found.layers) or 'nothing that was found'}; {found.unexplained} bytes unexplained",
            wanted=f"{found.a.sha256}, the image under test",
            hint=f"osgates diff {found.a.path} {found.b.path}",
        )
    ]
    for group in found.groups:
        if group.cause == FOLLOWS:
            continue
        where = ", ".join(dict.fromkeys(difference.where for difference in group.examples[:4]))
        findings.append(
            Finding(
                rule="cause",
                subject=f"{group.cause} ({pair.second})",
                seen=f"{group.title}: {group.summary}: {where}",
                wanted="the same bytes in both builds",
                hint=group.fix + (f"; its cost: {group.cost}" if group.cost else ""),
            )
        )
    return findings


def _probes(seen: ReproducibleObservation) -> list[Finding]:
    findings = [
        _unproven(
            "blind",
            probe.layer,
            f"one flipped byte at {probe.offset}: {probe.said or 'nothing was found'}",
            "a defect of this program",
            "a comparison that finds and names it",
        )
        for probe in seen.probes
        if not probe.found
    ]
    if seen.pairs:
        tried = {probe.layer for probe in seen.probes}
        findings += [
            _unproven(
                "not-probed", layer, "the comparison was not tried on it", wanted="one flipped byte in each layer"
            )
            for layer in FEWEST_PROBES
            if layer not in tried
        ]
    return findings


def _published(seen: ReproducibleObservation) -> list[Finding]:
    listed = seen.published
    if listed is None:
        return []
    if not listed.digest:
        return [
            _unproven(
                "not-listed",
                listed.name,
                f"{listed.file} has no line for it",
                "its name must be that of the image",
                "the SHA-256 that was published",
            )
        ]
    if listed.digest != seen.image.sha256:
        return [
            Finding(
                rule="not-published",
                subject=listed.name,
                seen=f"{seen.image.sha256}",
                wanted=f"{listed.digest}, as {listed.file} says",
                hint="what is judged is not what was released, or cannot be built again",
            )
        ]
    return []


def compare(before: ReproducibleObservation, now: ReproducibleObservation) -> list[str]:
    """Causes that came or went."""
    sides = [
        {group.cause: group.summary for pair in seen.pairs if pair.comparison for group in pair.comparison.groups}
        for seen in (before, now)
    ]
    lines = [f"{cause}: gone" for cause in sides[0] if cause not in sides[1]]
    lines += [f"{cause}: new: {text}" for cause, text in sides[1].items() if cause not in sides[0]]
    if before.image.sha256 != now.image.sha256:
        lines.append(f"image: {before.image.sha256[:16]} -> {now.image.sha256[:16]}")
    return lines


def controls(
    seen: ReproducibleObservation, policy: ReproduciblePolicy
) -> tuple[Control[ReproducibleObservation], ...]:
    """One for each pair and each probe that is in order, and one each for what could be missing."""
    made: list[Control[ReproducibleObservation]] = (
        [Control("no second build", _alone, "nothing-to-compare", "image", Severity.UNPROVEN)] if seen.pairs else []
    )
    for index, pair in enumerate(seen.pairs):
        found = pair.comparison
        if pair.same_file or found is None:
            continue
        if found.a.sha256 == found.b.sha256 and _DIGEST.fullmatch(found.a.sha256):
            made.append(Control(f"another digest ({pair.second})", _with_digest(index), "differs", pair.second))
        made.append(
            Control(
                f"one file twice ({pair.second})", _with_same_file(index), "same-file", pair.second, Severity.UNPROVEN
            )
        )
    made += [
        Control(
            f"a flipped byte that is not found ({probe.layer})",
            _without(probe.layer),
            "blind",
            probe.layer,
            Severity.UNPROVEN,
        )
        for probe in seen.probes
        if probe.found
    ]
    made += [
        Control(
            f"build {build.number} fails",
            _with_failure(index),
            "build-failed",
            f"build {build.number}",
            Severity.UNPROVEN,
        )
        for index, build in enumerate(seen.builds)
        if build.status == 0 and build.image is not None
    ]
    if seen.published is not None and seen.published.digest == seen.image.sha256:
        made.append(Control("another digest was published", _with_published, "not-published", seen.published.name))
    return tuple(made)


def _alone(seen: ReproducibleObservation) -> ReproducibleObservation:
    return seen.model_copy(update={"pairs": ()})


def _replaced(seen: ReproducibleObservation, index: int, pair: Pair) -> ReproducibleObservation:
    return seen.model_copy(update={"pairs": (*seen.pairs[:index], pair, *seen.pairs[index + 1 :])})


def _with_digest(index: int) -> Sabotage:
    def sabotage(seen: ReproducibleObservation) -> ReproducibleObservation:
        pair = seen.pairs[index]
        if pair.comparison is None:
            return seen
        first = pair.comparison.b.sha256[0]
        other = pair.comparison.b.model_copy(
            update={"sha256": ("1" if first == "0" else "0") + pair.comparison.b.sha256[1:]}
        )
        changed = pair.comparison.model_copy(update={"b": other})
        return _replaced(seen, index, pair.model_copy(update={"comparison": changed}))

    return sabotage


def _with_same_file(index: int) -> Sabotage:
    return lambda seen: _replaced(seen, index, seen.pairs[index].model_copy(update={"same_file": "a hard link"}))


def _without(layer: str) -> Sabotage:
    def sabotage(seen: ReproducibleObservation) -> ReproducibleObservation:
        probes = tuple(
            probe.model_copy(update={"found": False}) if probe.layer == layer else probe for probe in seen.probes
        )
        return seen.model_copy(update={"probes": probes})

    return sabotage


def _with_failure(index: int) -> Sabotage:
    def sabotage(seen: ReproducibleObservation) -> ReproducibleObservation:
        failed = seen.builds[index].model_copy(update={"status": 1})
        return seen.model_copy(update={"builds": (*seen.builds[:index], failed, *seen.builds[index + 1 :])})

    return sabotage


def _with_published(seen: ReproducibleObservation) -> ReproducibleObservation:
    if seen.published is None:
        return seen
    return seen.model_copy(update={"published": seen.published.model_copy(update={"digest": "0" * 64})})


GATE = Gate(
    name="reproducible",
    title="two clean builds of one commit have one SHA-256",
    states=(State.IMAGE,),
    observation=ReproducibleObservation,
    policy=ReproduciblePolicy,
    judge=judge,
    controls=controls,
    compare=compare,
)
