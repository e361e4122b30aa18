"""What is demanded of mounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pydantic import StrictBool, model_validator

from pytest_osgates.checks.settings.demand import (
    MET,
    MOOT,
    NOT_ASKED,
    Demand,
    Entry,
    Line,
    Lines,
    Looked,
    Miss,
    Paths,
    Questions,
    like,
    missed,
    short,
    unproven,
)
from pytest_osgates.checks.settings.facts import Mount, MountsFact, SettingsObservation


def mount_at(mounts: Sequence[Mount], path: str) -> Mount | None:
    """The mount that is in sight at `path`, None where none is: not one that another covers, at the same place or
    further up (proc(5): each line names the mount that it lies on).
    """
    here = [mount for mount in mounts if mount.path == path and not _covered(mount, mounts)]
    here = [mount for mount in here if not _on_hidden(mount, mounts)]
    return here[-1] if here else None


def _covered(mount: Mount, mounts: Sequence[Mount]) -> bool:
    return any(other.parent == mount.id and other.path == mount.path and other.id != mount.id for other in mounts)


def _on_hidden(mount: Mount, mounts: Sequence[Mount]) -> bool:
    """Whether the mount, or one that it lies on, lies below something that was mounted over their common parent."""
    by_id = {entry.id: entry for entry in mounts}
    seen: set[int] = set()
    current: Mount | None = mount
    while current is not None and current.id not in seen:
        seen.add(current.id)
        for other in mounts:
            beside = other.parent == current.parent and other.id != current.id
            if beside and other.path != current.path and _is_below(current.path, other.path):
                return True
        current = by_id.get(current.parent)
    return False


def _is_below(path: str, above: str) -> bool:
    return path.startswith(above.rstrip("/") + "/")


# mount(8): the kernel shows the first of each pair, and the second by saying nothing (show_mnt_opts(), show_sb_opts()
# in fs/proc_namespace.c).
_OPPOSITES = (
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("nosymfollow", "symfollow"),
    ("sync", "async"),
)
# mount(8), fstab(5): for mount and systemd alone; the kernel never hears of them.
_NEVER_SHOWN = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
)


def options_of(mount: Mount) -> set[str]:
    """Its own options and those of its superblock; read-only where either is. Of what the kernel does not show, the
    opposite is in force.
    """
    options = {*mount.options, *mount.super_options}
    options |= {silent for shown, silent in _OPPOSITES if shown not in options}
    return options - {"rw"} if "ro" in options else options


class MountEntry(Entry):
    """``[[gate.settings.mount]]``: ``options`` and ``lacks`` may hold ``*`` and ``?``; ``type``: the file system."""

    paths: Paths
    present: StrictBool = False
    absent: StrictBool = False
    options: Lines = ()
    lacks: Lines = ()
    type: Line | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> MountEntry:
        others = bool(self.options or self.lacks or self.type)
        if not self.paths or not (others or self.absent or self.present):
            raise ValueError("it demands nothing: give paths, and options, lacks, type, present or absent")
        if self.absent and (others or self.present):
            raise ValueError("what is not mounted has no options and no type")
        clash = sorted(option for option in self.options if any(like(option, pattern) for pattern in self.lacks))
        if clash:
            raise ValueError(f"{clash[0]!r} is in options and in lacks")
        always = [
            option
            for option in self.options
            if any(like(one, option) and like(other, option) for one, other in (("ro", "rw"), *_OPPOSITES))
        ]
        if always:
            raise ValueError(f"every mount has an option that {always[0]!r} fits")
        unseen = sorted(_NEVER_SHOWN & {*self.options, *self.lacks})
        if unseen:
            raise ValueError(f"the kernel does not show {unseen[0]!r}: demand what it stands for, such as nosuid")
        if {"ro", "rw"} <= set(self.options):
            raise ValueError("a mount is read-only or not, and options has both")
        return self

    def ask(self, questions: Questions) -> None:
        questions.mounts = True

    def demands(self) -> Iterator[Demand]:
        for path in self.paths:
            if self.absent:
                planted = _mount(path, ())
                yield self._demand(path, "absent", "no mount", _is_absent, planted, gone=True)
                continue
            implied = not self.present
            yield self._demand(path, "present", "a mount of its own", _is_there, None, implied=implied)
            for option in self.options:
                # As a pattern may fit "rw" or "exec", which other mounts have without a word.
                others = [one if not like(one, option) else other for one, other in (("ro", "rw"), *_OPPOSITES)]
                planted = _mount(path, ("osgates_control", *others))
                yield self._attribute(path, option, option, partial(_has, option=option), planted)
            for option in self.lacks:
                literal = option.replace("*", "x").replace("?", "x")
                yield self._attribute(
                    path,
                    f"lacks {option}",
                    f"no {option}",
                    partial(_lacks, option=option),
                    _mount(path, (literal,)),
                )
            if self.type is not None:
                fits = partial(_is_of, type_=self.type)
                yield self._attribute(path, "type", self.type, fits, _mount(path, ()), _type)

    def _attribute(
        self,
        path: str,
        what: str,
        wanted: str,
        fits: Callable[[Mount], bool],
        planted: Mount,
        say: Callable[[Mount], str] | None = None,
    ) -> Demand:
        def judge(mount: Mount | None) -> Looked:
            if mount is None:
                return MOOT
            return MET if fits(mount) else missed((say or _say)(mount))

        return self._demand(path, what, wanted, judge, planted)

    def _demand(
        self,
        path: str,
        what: str,
        wanted: str,
        judge: Callable[[Mount | None], Looked],
        planted: Mount | None,
        *,
        gone: bool = False,
        implied: bool = False,
    ) -> Demand:
        def look(seen: SettingsObservation) -> Looked:
            fact = seen.mounts
            if fact is None or fact.problem:
                return unproven(NOT_ASKED if fact is None else fact.problem)
            if not fact.mounts:
                return unproven("no mount was seen at all")
            return judge(mount_at(fact.mounts, path))

        def spoil(seen: SettingsObservation) -> SettingsObservation:
            """The mount replaced, or taken away; another stays, as there is always one."""
            kept = [mount for mount in (seen.mounts or MountsFact()).mounts if mount.path != path]
            changed = [*kept, planted] if planted is not None else kept or [_mount("/osgates-control", ())]
            return seen.model_copy(update={"mounts": MountsFact(mounts=tuple(changed))})

        return Demand(
            *("mount", f"{path} {what}", wanted, self.reason, look, spoil), thing=path, gone=gone, implied=implied
        )


def _mount(path: str, options: tuple[str, ...]) -> Mount:
    """A mount for a control: of a type and with options that nothing else has, and on no other."""
    return Mount(
        id=-1, parent=-2, path=path, type="osgates-control", source="none", options=options, super_options=()
    )


def _is_of(mount: Mount, type_: str) -> bool:
    return mount.type == type_


def _lacks(mount: Mount, option: str) -> bool:
    return not _has(mount, option)


def _has(mount: Mount, option: str) -> bool:
    return any(like(given, option) for given in options_of(mount))


def _is_absent(mount: Mount | None) -> list[Miss]:
    return MET if mount is None else missed(f"a {short(mount.type)} of {short(mount.source)}")


def _is_there(mount: Mount | None) -> list[Miss]:
    return missed("no mount of its own") if mount is None else MET


def _say(mount: Mount) -> str:
    # What nobody asks for by these names is left out.
    return short(",".join(sorted(options_of(mount) - {"async", "symfollow"})))


def _type(mount: Mount) -> str:
    return short(mount.type)
