"""Two images compared, layer by layer: where each file goes by what it is, and what the account comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_osgates.image.diff import cpio, fat, formats, pe
from pytest_osgates.image.diff.digests import NOTHING_KNOWN, CleanMap
from pytest_osgates.image.diff.found import Difference, Findings, Layer, Spot, hexed
from pytest_osgates.image.diff.iso import ImageContent, IsoComparison
from pytest_osgates.image.diff.ranges import CHUNK, Content, Ranges, differing_ranges
from pytest_osgates.image.diff.ranges import spots as spots_of
from pytest_osgates.image.diff.squashfs import Place, SquashfsComparison
from pytest_osgates.image.diff.squashfs_data import FileChange
from pytest_osgates.image.source import Source, check_range
from pytest_osgates.vm.errors import ImageError

MAX_DEPTH = 6
# How many files are looked into, and how many of their bytes; of the rest it is said that they differ.
MAX_LOOKED_INTO = 5_000
MAX_LOOKED_BYTES = 2 << 30


@dataclass(frozen=True)
class ContentSource:
    """A file inside an image as the :class:`Source` of a file system that is in it."""

    content: Content
    name: str

    @property
    def size(self) -> int:
        return self.content.size

    def read_at(self, offset: int, size: int) -> bytes:
        check_range(self, offset, size)
        return self.content.read(offset, size)


class Comparison:
    """The walk through all layers. `progress` is told the path of each file of the image that is looked into."""

    def __init__(self, clean: CleanMap = NOTHING_KNOWN, progress: Callable[[str], None] | None = None) -> None:
        self.out = Findings()
        self.clean = clean
        self.progress = progress
        self._looked = 0
        self._bytes = 0
        self._depth = 0

    def run(self, a: Source, b: Source) -> Findings:
        """Compare two images of whatever kind: ISO 9660, or else anything that :meth:`inside` knows."""
        try:
            IsoComparison(a, b, self.out, self.clean, self._iso_file).run()
        except ImageError as error:
            # What was found up to here stays; the rest is one run of bytes.
            self.out.notes.append(f"not compared as an ISO image: {error.what}")
            one, other = _Whole(a), _Whole(b)
            self._as_bytes(Layer.IMAGE, "", "image", one, other, differing_ranges(one, other), error.what)
        return self.out

    # -- files of the ISO
    # ---------------------------------------------------------------------------------------------

    def _iso_file(self, path: str, a: ImageContent, b: ImageContent) -> None:
        if self.progress is not None:
            self.progress(path)
        places = a.contiguous, b.contiguous
        if places[0] and places[1] and a.read(0, 4) == b.read(0, 4) == b"hsqs":
            one = Place(a.source, places[0].offset, a.size)
            other = Place(b.source, places[1].offset, b.size)
            before = len(self.out.differences)
            # Found nothing, it must be the same bytes: otherwise they are compared as such below.
            if self._squashfs(path, one, other, self.clean) and len(self.out.differences) > before:
                return
        if self._equal(a, b):
            return
        ranges = differing_ranges(a, b)
        if ranges.differing:
            self._file(Layer.FILE, "", path, a, b, ranges)

    def _equal(self, a: ImageContent, b: ImageContent) -> bool:
        if a.size != b.size:
            return False
        if a.extents == b.extents and all(self.clean.clean(extent.offset, extent.size) for extent in a.extents):
            return True
        return all(a.read(at, CHUNK) == b.read(at, CHUNK) for at in range(0, a.size, CHUNK))

    # -- any file
    # -----------------------------------------------------------------------------------------------------

    def inside(self, layer: Layer, container: str, path: str, a: Content, b: Content) -> None:
        """Two files of one path; nothing is said if they are the same."""
        ranges = differing_ranges(a, b)
        if ranges.differing:
            self._file(layer, container, path, a, b, ranges)

    def _file(self, layer: Layer, container: str, path: str, a: Content, b: Content, ranges: Ranges) -> None:
        self._looked += 1
        self._bytes += a.size + b.size
        name = f"{container}!{path}" if container else path
        if self._looked > MAX_LOOKED_INTO or self._bytes > MAX_LOOKED_BYTES:
            self._content(layer, container, path, a, b, ranges, "")
            return
        self._depth += 1
        try:
            if self._depth <= MAX_DEPTH and self._container(layer, container, path, name, a, b, ranges):
                return
        finally:
            self._depth -= 1
        kind, found = formats.inspect(path, a, b, ranges)
        self._content(layer, container, path, a, b, ranges, kind, found)

    def _content(
        self,
        layer: Layer,
        container: str,
        path: str,
        a: Content,
        b: Content,
        ranges: Ranges,
        kind: str,
        found: tuple[Spot, ...] = (),
        *,
        follows: bool = False,
    ) -> None:
        sizes = [f"{content.size} bytes" for content in (a, b)]
        places: list[int | None] = [None, None]
        for side, content in enumerate((a, b)):
            whole = content.contiguous if isinstance(content, ImageContent) else None
            if whole is not None and ranges.found:
                places[side] = whole.offset + ranges.first
        self.out.add(
            Difference(
                layer,
                container,
                path,
                "content",
                sizes[0],
                sizes[1],
                (places[0], places[1]),
                spots=found,
                kind=kind,
                differing=ranges.differing,
                follows=follows,
            )
        )

    def _as_bytes(
        self, layer: Layer, container: str, path: str, a: Content, b: Content, ranges: Ranges, why: str
    ) -> None:
        spots = spots_of(a, b, ranges)
        self.out.notes.append(f"{container}{'!' if container else ''}{path}: compared as bytes: {why}")
        self._content(layer, container, path, a, b, ranges, "as bytes", spots)

    def _container(
        self, layer: Layer, container: str, path: str, name: str, a: Content, b: Content, ranges: Ranges
    ) -> bool:
        """Compare what is in two containers of one kind. False: they are none, or one is damaged."""
        compare = self._comparer(a, b, name)
        if compare is None:
            return False
        before = len(self.out.differences)
        try:
            compare()
        except ImageError as error:
            del self.out.differences[before:]
            self._as_bytes(layer, container, path, a, b, ranges, error.what)
            return True
        # The file's own bytes differ because of what is in it; if that came to nothing, it is all that there is.
        found = len(self.out.differences) > before
        spots = () if found else spots_of(a, b, ranges)
        self._content(layer, container, path, a, b, ranges, "container" if found else "", spots, follows=found)
        return True

    def _comparer(self, a: Content, b: Content, name: str) -> Callable[[], None] | None:
        heads = a.read(0, 2048), b.read(0, 2048)
        if all(head.startswith(b"hsqs") for head in heads):
            one, other = (Place(ContentSource(content, name), 0, content.size) for content in (a, b))

            def squashfs() -> None:
                if not self._squashfs(name, one, other, NOTHING_KNOWN):
                    raise ImageError("one of them is damaged")

            return squashfs
        if all(head.startswith(b"MZ") for head in heads):
            return lambda: pe.compare_pe(a, b, name, self.out, self._inside(Layer.PE))
        if all(fat.is_fat(head[:512]) for head in heads):
            return lambda: fat.compare_fats(a, b, name, self.out, self._inside(Layer.FAT))
        if cpio.is_initrd(a) and cpio.is_initrd(b):
            return lambda: cpio.compare_initrds(a, b, name, self.out, self._inside(Layer.CPIO))
        return None

    def _inside(self, layer: Layer) -> Callable[[str, str, Content, Content], None]:
        return lambda container, path, a, b: self.inside(layer, container, path, a, b)

    # -- squashfs
    # -----------------------------------------------------------------------------------------------------

    def _squashfs(self, name: str, a: Place, b: Place, clean: CleanMap) -> bool:
        """Whether both could be read as squashfs; then everything is said about them."""
        before, unexplained = len(self.out.differences), self.out.unexplained
        try:
            comparison = SquashfsComparison(a, b, name, self.out, clean)
            comparison.run(self._squashfs_file)
            self._squashfs_rest(comparison, a, b)
        except ImageError as error:
            del self.out.differences[before:]
            self.out.unexplained = unexplained
            self.out.notes.append(f"{name}: not compared as squashfs: {error.what}")
            return False
        return True

    def _squashfs_file(self, container: str, path: str, a: Content, b: Content, change: FileChange) -> None:
        try:
            self._file(Layer.SQUASHFS, container, path, a, b, change.ranges)
        except ImageError as error:
            self.out.add(Difference(Layer.SQUASHFS, container, path, "content", "", error.what, kind="unreadable"))

    def _squashfs_rest(self, comparison: SquashfsComparison, a: Place, b: Place) -> None:
        """What nobody claimed inside the squashfs, and what comes after it in its file."""
        sides = []
        for place, extents, tables in zip((a, b), comparison.extents, (comparison.a, comparison.b), strict=True):
            gaps = [
                (start, place.source.read_at(place.offset + start, min(end - start, CHUNK)), end - start)
                for start, end in extents.gaps()
            ]
            sides.append([(start, data, size) for start, data, size in gaps if data.strip(b"\x00")])
            used = tables.superblock.bytes_used
            tail = place.source.read_at(place.offset + used, min(place.size - used, CHUNK)).rstrip(b"\x00")
            sides.append([(used, tail, len(tail))] if tail else [])
        for index, what in ((0, "bytes of no structure"), (1, "bytes after its end")):
            left, right = sides[index], sides[index + 2]
            if [data for _, data, _ in left] == [data for _, data, _ in right]:
                continue
            size = max(sum(length for *_, length in side) for side in (left, right))
            shown = [hexed(b"".join(data for _, data, _ in side)[:64]) for side in (left, right)]
            places = [place.offset + side[0][0] if side else None for place, side in ((a, left), (b, right))]
            self.out.add(
                Difference(
                    Layer.PADDING if index else Layer.UNEXPLAINED,
                    comparison.container,
                    "squashfs",
                    what,
                    shown[0],
                    shown[1],
                    (places[0], places[1]),
                    differing=size,
                )
            )
            if not index:
                self.out.unexplained += size


class _Whole:
    """An image as one content."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = source.size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        return self._source.read_at(offset, size) if size > 0 else b""


def compare_sources(
    a: Source, b: Source, clean: CleanMap = NOTHING_KNOWN, progress: Callable[[str], None] | None = None
) -> Findings:
    """Everything in which two images differ; nothing if in nothing.

    If their bytes differ, something is found: what cannot be attributed is there as such.
    """
    findings = Comparison(clean, progress).run(a, b)
    if not findings.differences and not _same_bytes(a, b):
        one, other = _Whole(a), _Whole(b)
        ranges = differing_ranges(one, other)
        findings.unexplained += ranges.differing
        findings.add(
            Difference(
                Layer.UNEXPLAINED,
                "",
                "image",
                "bytes of no structure",
                spots=spots_of(one, other, ranges),
                differing=ranges.differing,
            )
        )
    return findings


def _same_bytes(a: Source, b: Source) -> bool:
    return a.size == b.size and all(
        a.read_at(at, min(CHUNK, a.size - at)) == b.read_at(at, min(CHUNK, a.size - at))
        for at in range(0, a.size, CHUNK)
    )
