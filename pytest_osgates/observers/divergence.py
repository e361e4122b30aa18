"""Two images, read and compared: the engine's findings as the data that is judged and reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pytest_osgates.checks.causes import attribute, group
from pytest_osgates.checks.divergence import Difference, ImageComparison, ImageFile, Spot
from pytest_osgates.image.diff import found
from pytest_osgates.image.diff.compare import compare_sources
from pytest_osgates.image.diff.digests import Digests, digest_both
from pytest_osgates.image.source import open_source

Progress = Callable[[str, float | None], None]


def compare_images(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    progress: Progress | None = None,
    digests: Digests | None = None,
) -> ImageComparison:
    """Compare the images at `a` and `b`. Their digests alone decide whether they are equal.

    :raise UsageError: one is not there, or may not be read.
    :raise ImageError: one is not a regular file, is empty, or changed meanwhile.
    """
    begun = time.monotonic()

    def reading(done: int, size: int) -> None:
        if progress is not None:
            progress("reading both images", done / size if size else None)

    if digests is None:
        digests = digest_both(a, b, reading)
    sizes = [Path(path).stat().st_size for path in (a, b)]
    files = [
        ImageFile(path=os.fspath(path), size=size, sha256=digest)
        for path, size, digest in zip((a, b), sizes, (digests.a, digests.b), strict=True)
    ]
    if digests.equal:
        return ImageComparison(a=files[0], b=files[1], equal=True, seconds=time.monotonic() - begun)
    with open_source(a) as one, open_source(b) as other:
        findings = compare_sources(
            one,
            other,
            digests.clean,
            None if progress is None else lambda path: progress(f"looking into {path}", None),
        )
    differences = attribute(_difference(difference) for difference in findings.differences)
    return ImageComparison(
        a=files[0],
        b=files[1],
        equal=False,
        differences=differences,
        groups=group(differences),
        unexplained=findings.unexplained,
        left_out=findings.left_out,
        nodes=findings.nodes,
        notes=tuple(findings.notes),
        seconds=time.monotonic() - begun,
    )


def text_of(name: str) -> str:
    """A name from an image as text that can be written: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _difference(difference: found.Difference) -> Difference:
    # There can be hundreds of thousands, and all of their values were made here: they need no validation.
    return Difference.model_construct(
        layer=str(difference.layer),
        container=text_of(difference.container),
        path=text_of(difference.path),
        what=difference.what,
        a=difference.a,
        b=difference.b,
        offset_a=difference.offsets[0],
        offset_b=difference.offsets[1],
        delta=difference.delta,
        follows=difference.follows,
        spots=tuple(
            Spot(locus=spot.locus, offset=spot.offset, size=spot.size, a=spot.a, b=spot.b)
            for spot in difference.spots
        ),
        kind=difference.kind,
        differing=difference.differing,
        cause="",
    )
