"""What two images differ in, for a reader: as lines of text, as HTML, as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_osgates.checks.causes import FOLLOWS
from pytest_osgates.checks.divergence import Difference, Group, ImageComparison
from pytest_osgates.vm.text import one_line

_WIDTH = 400
_SPOTS = 3


def text_lines(seen: ImageComparison, examples: int = 5) -> Iterator[str]:
    """The report: digests, causes in the order of what to mend first, the account."""
    for name, image in (("A", seen.a), ("B", seen.b)):
        yield f"{name}  {image.sha256}  {image.size} bytes  {one_line(image.path, _WIDTH)}"
    if seen.equal:
        yield "identical"
        return
    yield f"different in {', '.join(seen.layers)}"
    numbered = 0
    for group in seen.groups:
        numbered += group.cause != FOLLOWS
        yield ""
        yield from _group_lines(group, f"{numbered}. " if group.cause != FOLLOWS else "", examples)
    if seen.notes:
        yield ""
        yield from (f"note: {one_line(note, _WIDTH)}" for note in seen.notes[:20])
    yield ""
    if seen.left_out:
        yield f"{seen.left_out} more differences were counted and are not listed"
    yield f"{len(seen.differences)} differences, {seen.nodes} files compared in {seen.seconds:.1f} s"
    yield f"{seen.unexplained} bytes unexplained"


def _group_lines(group: Group, number: str, examples: int) -> Iterator[str]:
    yield f"{number}{group.title}: {group.summary}"
    indent = "     "
    if group.why:
        yield f"{indent}why: {group.why}"
    yield f"{indent}fix: {group.fix}"
    if group.cost:
        yield f"{indent}COST: {group.cost}"
    if group.source:
        yield f"{indent}source: {group.source}"
    shown = group.examples[: examples if group.cause != FOLLOWS else min(examples, 3)]
    for difference in shown:
        yield from (f"{indent}- {line}" if not first else f"{indent}  {line}" for first, line in _lines(difference))
    if group.count > len(shown):
        yield f"{indent}... and {group.count - len(shown)} more"


def _lines(difference: Difference) -> Iterator[tuple[bool, str]]:
    """A difference in a few lines; the first has no flag."""
    yield False, one_line(f"{difference.where}: {described(difference)}", _WIDTH)
    for spot in difference.spots[:_SPOTS]:
        yield True, one_line(f"at {spot.offset}, {spot.locus}: {spot.a!r} / {spot.b!r}", _WIDTH)
    if len(difference.spots) > _SPOTS:
        yield True, f"and {len(difference.spots) - _SPOTS} more places"


def described(difference: Difference) -> str:
    """What differs, on one line: the field, both values, and where in the images."""
    text = difference.what
    if difference.a or difference.b:
        values = [value for value in (difference.a, difference.b) if value]
        text += f" {' -> '.join(values) if len(values) == 2 else values[0]}"
    if difference.differing is not None:
        text += f", {difference.differing} bytes differ"
    if difference.kind:
        text += f" ({difference.kind})"
    offsets = [str(offset) for offset in (difference.offset_a, difference.offset_b) if offset is not None]
    if offsets:
        text += f" [{difference.layer}, byte {offsets[0] if len(set(offsets)) == 1 else ' / '.join(offsets)}]"
    return text


def html(seen: ImageComparison) -> str:
    """The report as one HTML page; everything from an image is escaped."""
    # Only who wants a page waits for it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pytest_osgates.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["described"] = described
    environment.filters["line"] = lambda text: one_line(str(text), _WIDTH)
    return environment.get_template("diff.html").render(seen=seen, follows=FOLLOWS)


__all__ = ["described", "html", "text_lines"]
