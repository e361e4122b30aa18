"""Packages and files out of small images, as the boot stacks their layers."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from memory_root import Directory, Entry, File, Gone, Link, program, root
from rpm_samples import database, with_files

from pytest_osgates.image.rootfs import RootView
from pytest_osgates.image.walk import locate, walk
from pytest_osgates.model import State
from pytest_osgates.observers.packages import observe

STATUS = "Package: {0}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
BASE: dict[str, Entry] = {
    "/bin": Link("usr/bin"),
    "/lib": Link("usr/lib"),
    "/usr/lib": Directory(),
    "/usr/bin/nft": program(b"x"),
    "/usr/bin/dash": program(b"x"),
    "/usr/bin/sh": Link("dash"),
    "/var/lib/dpkg/status": (STATUS.format("nftables") + STATUS.format("dash")).encode(),
    "/var/lib/dpkg/info/nftables.list": b"/.\n/bin\n/bin/nft\n/lib/libnft.so\n/usr/share/doc/nft\n",
    "/var/lib/dpkg/info/dash.list": b"/bin/sh\n/usr/bin/dash\n/lib/modules/1/a.ko\n/usr/lib/man/man1/x\n",
}


@pytest.fixture
def view() -> RootView:
    return root(BASE, {"/usr/bin/nft": Gone(), "/usr/bin/nc": b"x", "/usr/share/doc": Directory(opaque=True)})


def test_what_the_upper_layer_takes_away_is_missing(view: RootView) -> None:
    seen = observe(view, ["/bin/n?", "/usr/bin/nft", "/usr/lib/snapd/*", "*.ko", "/nowhere/[ab]/x"])
    assert seen.state is State.IMAGE
    assert {package.name: package.missing for package in seen.packages} == {
        "nftables": ("/bin/nft", "/lib/libnft.so"),
        "dash": (),
    }
    assert seen.files["/bin/n?"].paths == ("/usr/bin/nc",)
    assert [seen.files[path].count for path in ("/usr/bin/nft", "/usr/lib/snapd/*", "*.ko", "/nowhere/[ab]/x")] == [
        0
    ] * 4
    assert [database.problems for database in seen.databases] == [()]


def missing(*layers: dict[str, Entry], package: str = "nftables") -> tuple[str, ...]:
    """The files of nftables, of which all but nft are left alone, that are not there in `layers` over BASE."""
    whole: dict[str, Entry] = {"/usr/lib/libnft.so": b"x"}
    seen = observe(root(BASE, whole, *layers), [])
    assert [database.problems for database in seen.databases] == [()]
    return next(entry.missing for entry in seen.packages if entry.name == package)


def test_what_is_all_there_lacks_nothing() -> None:
    assert missing() == ()


def diverted(by: str, *, name: str = "nft.distrib") -> dict[str, Entry]:
    triple = f"/bin/nft\n/bin/{name}\n{by}\n"
    return {"/var/lib/dpkg/diversions": triple.encode(), f"/usr/bin/{name}": program(b"x")}


@pytest.mark.parametrize(
    ("layer", "gone"),
    [
        pytest.param({**diverted(":"), "/usr/bin/nft": Gone()}, True, id="put away by an administrator"),
        pytest.param({**diverted("nobody"), "/usr/bin/nft": Gone()}, True, id="by a package that is not there"),
        pytest.param({**diverted("dash"), "/usr/bin/nft": Gone()}, True, id="nothing in its place"),
        pytest.param(diverted("dash"), False, id="by another package"),
        pytest.param({**diverted("dash"), "/usr/bin/nft.distrib": Gone()}, True, id="the one that made way is gone"),
        pytest.param({**diverted("nftables"), "/usr/bin/nft.distrib": Gone()}, False, id="by the package itself"),
    ],
)
def test_a_diverted_program(layer: dict[str, Entry], *, gone: bool) -> None:
    assert missing(layer) == (("/bin/nft",) if gone else ())


def instead(entry: Entry, **more: Entry) -> dict[str, Entry]:
    """A layer over BASE with something else as nft."""
    return {"/usr/bin/nft": entry, **{f"/usr/bin/{name}": other for name, other in more.items()}}


@pytest.mark.parametrize(
    ("layer", "gone"),
    [
        pytest.param(instead(Link("/nowhere")), True, id="a link to nothing"),
        pytest.param(instead(Link("nft")), True, id="a link to itself"),
        pytest.param(instead(Link(".")), True, id="a link to a directory"),
        pytest.param(instead(Link("../bin/multi"), multi=program(b"x")), False, id="a link to a program"),
        pytest.param(instead(Link("multi"), multi=File(b"x")), True, id="a link to what cannot be run"),
        pytest.param(instead(File(b"x", 0o644)), True, id="nothing that can be run"),
        pytest.param(instead(program(b"x", 0o100)), False, id="only its owner may run it"),
        pytest.param(instead(program(b"")), True, id="an empty file"),
        pytest.param({"/usr/bin/nft": Directory()}, True, id="a directory"),
        pytest.param({**diverted("dash"), "/usr/bin/nft.distrib": b""}, True, id="diverted, and emptied"),
    ],
)
def test_a_program_is_a_file_that_can_be_run(layer: dict[str, Entry], *, gone: bool) -> None:
    assert missing(layer) == (("/bin/nft",) if gone else ())


@pytest.mark.parametrize(
    ("layer", "gone"),
    [
        ({"/usr/lib/libnft.so": b""}, True),
        ({"/usr/lib/libnft.so": Link("libnft.so.1")}, True),
        ({"/usr/lib/libnft.so": Link("libnft.so.1"), "/usr/lib/libnft.so.1": File(b"x", 0o644)}, False),
    ],
)
def test_a_library_is_a_file_with_something_in_it(layer: dict[str, Entry], *, gone: bool) -> None:
    assert missing(layer) == (("/lib/libnft.so",) if gone else ())


def test_directories_among_programs_and_what_else_is_in_lib_need_no_contents() -> None:
    listed = b"/usr/bin/more\n/usr/bin/more/x\n/usr/bin/X11\n/usr/lib/nft/__init__.py\n/usr/lib/nft/a.service\n"
    layer: dict[str, Entry] = {
        "/var/lib/dpkg/info/nftables.list": listed,
        "/usr/bin/more/x": b"x",
        "/usr/bin/X11": Link("."),
        "/usr/lib/nft/__init__.py": b"",
        "/usr/lib/nft/a.service": Link("/dev/null"),
    }
    assert missing(layer) == ()


DATA = ("/etc/nft.conf", "/usr/share/nft/a", "/usr/share/nft/b")
FIRMWARE = ("/lib/firmware/a", "/lib/firmware/b", "/boot/a")


@pytest.mark.parametrize(
    ("listed", "there", "gone"),
    [
        pytest.param(
            ("/opt/nft/bin/nft", "/usr/games/nft"), (), ("/opt/nft/bin/nft", "/usr/games/nft"), id="elsewhere"
        ),
        pytest.param(DATA, DATA, (), id="data"),
        pytest.param(DATA, DATA[:2], DATA[2:], id="data in part"),
        pytest.param((*DATA, "/usr/bin/nft"), DATA[:1], (), id="data beside a program"),
        pytest.param(("/usr/share/doc/nft/copyright", "/usr/share/man", "/run/nft"), (), (), id="told of"),
        pytest.param(FIRMWARE, FIRMWARE[:1], (), id="some drivers"),
        pytest.param(FIRMWARE, (), FIRMWARE, id="no drivers"),
    ],
)
def test_packages_without_programs_where_programs_are(
    listed: tuple[str, ...], there: tuple[str, ...], gone: tuple[str, ...]
) -> None:
    parents = {str(parent) for path in listed for parent in PurePosixPath(path).parents if str(parent) != "/"}
    lines = "".join(f"{line}\n" for line in ("/.", *sorted(parents), *listed))
    layer: dict[str, Entry] = {path.replace("/lib", "/usr/lib"): b"x" for path in there}
    found = missing({**layer, "/var/lib/dpkg/info/nftables.list": lines.encode()})
    assert tuple(path for path in found if path not in parents) == gone


@pytest.mark.parametrize(
    ("entry", "gone"),
    [
        (b"x", False),
        (b"", True),
        (Directory(), True),
        (Link("/nowhere"), True),
        (Link("../libnft.so"), False),
    ],
)
def test_what_came_with_something_in_it_must_have_it(entry: Entry, *, gone: bool) -> None:
    layer: dict[str, Entry] = {
        "/var/lib/dpkg/info/nftables.list": b"/.\n/usr/lib/nft\n/usr/lib/nft/daemon\n/usr/lib/nft/empty\n",
        "/var/lib/dpkg/info/nftables.md5sums": b"0" * 32 + b"  usr/lib/nft/daemon\n",
        "/usr/lib/nft/daemon": entry,
        "/usr/lib/nft/empty": b"",
    }
    assert missing(layer) == (("/usr/lib/nft/daemon",) if gone else ())


def test_what_rpm_does_not_miss_is_not_missing() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/sysimage/rpm/rpmdb.sqlite": database(with_files((0, 0, 1 << 6))),
        "/usr/bin/a": program(b"x"),
    }
    assert [package.missing for package in observe(root(files), []).packages] == [("/usr/bin/b",)]


def test_every_name_that_links_of_directories_give_a_file_counts() -> None:
    more: dict[str, Entry] = {
        "/sbin": Link("usr/sbin"),
        "/usr/sbin/nft": program(b"x"),
        "/usr/bin/nc": program(b"x"),
        "/usr/bin/X11": Link("."),
        "/usr/lib/snapd/snapd": program(b"x"),
        "/usr/local/bin": Link("/opt/bin"),
        "/opt/bin/tool": program(b"x"),
        "/opt/bin/loop": Link("/opt"),
        "/opt/bin/everything": Link("/"),
        "/opt/bin/self": Link("self"),
        "/opt/bin/nowhere": Link("/nowhere"),
    }
    files = {
        **dict.fromkeys(("/bin*/nc", "/b*/nc", "/?in/nc", "/*/X11/X11/nc", "/b?n/X?1/nc"), ("/usr/bin/nc",)),
        **dict.fromkeys(("/s?in/nft", "/*sbin/nft", "/opt/*/everything/s*/nft"), ("/usr/sbin/nft",)),
        "/l*/snapd/*": ("/usr/lib/snapd/snapd",),
        "/usr/local/*/tool": ("/opt/bin/tool",),
        "/u*/l*/b*/to*l": ("/opt/bin/tool",),
        "/opt/*/bin/tool": ("/opt/bin/tool",),
        "/usr/local/bin/nowhere": ("/opt/bin/nowhere",),
        "/usr/local/bin/nowhere/*": (),
        "/opt/bin/self/*": (),
        "/opt/bin/tool/*": (),
        "/usr/local/*in": ("/bin", "/opt/bin", "/sbin", "/usr/bin", "/usr/local/bin", "/usr/sbin"),
    }
    seen = observe(root(BASE, more), files)
    assert {pattern: found.paths for pattern, found in seen.files.items()} == files


def test_a_walk_meets_every_name_once(view: RootView) -> None:
    paths = [node.path for node in walk(view)]
    assert len(paths) == len(set(paths))
    assert "/usr/bin/nft" not in paths
    assert {"/usr/bin/nc", "/usr/bin/sh", "/bin", "/var/lib/dpkg/info/dash.list"} <= set(paths)
    for path in paths:
        node = locate(view, path, follow=False)
        assert node is not None
        assert node.path == path


def test_locate_says_where_links_lead(view: RootView) -> None:
    found = locate(view, "/bin/../bin/sh")
    assert found is not None
    assert found.path == "/usr/bin/dash"
    link = locate(view, "/bin/sh", follow=False)
    assert link is not None
    assert link.path == "/usr/bin/sh"
    assert locate(view, "/bin/nft") is None
    assert locate(view, "/bin/sh/x") is None
    root = locate(view, "/../..")
    assert root is not None
    assert root.path == "/"
