"""Data bases of packages: dpkg's, rpm's, what is deployed as a Flatpak or snap; well-formed, damaged and hostile."""

from __future__ import annotations

import base64
import sqlite3
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_root import Directory, Entry, Link, root
from rpm_samples import database, header, simple, with_files

from pytest_osgates.image.packages import Trouble
from pytest_osgates.image.packages.dpkg import parse_status, read_dpkg
from pytest_osgates.image.packages.rpm import MalformedHeader, parse_database, parse_header, read_rpm
from pytest_osgates.image.packages.sandboxed import read_flatpak, read_snap

# A header as rpm 4.18 wrote it into its data base: osgates-sample 4:1.2-3 with two files.
REAL = zlib.decompress(
    base64.b64decode(
        "eNqllcuLHUUUxus+8jTRhGQ0BhezESaQvre6u7q6WhCVGTQjPgaMYjAR63nTeF/c7hlGETHgzpUIkoUgSP6F2blwIa5cuBDc6C6C"
        "0RhHEZ2FOqm+9SXBuLThdPGr75xTp17dhJBHCem8Swh5zNs+Qtrf+faIN+NtPwlPy/v84Nu93trga+Cj4B/BC+CffNv1dgJ83bcH"
        "vD0E/hn8MPgG/JfAvyDfafCv0Cn4D+gMvIN8Avw39BXwP+CnA3e7yHc2zKnbaB1v58EHwK+BD8LfgO/B+gzBh8A3wIfhvw2+D/oO"
        "+EjgVht8PNTXOoT6FkJ86zT0B+CP+XZPQF8JdXYfhL4GPgn+GLyE/FuIfwrxnyL/GfDn4FXEfwl+GfpXiD8H/Wvweejfwv8C9Kvg"
        "V8F/glWop70P8QZ8L9iCj4EdGOepOwSfBNdh/DZF/nWwAG+E8duPB/9jH0B/BvwF8q2Br8L/JfD38L8Mvgb9o8CtFvRt8B7cp9/D"
        "fWodDvk7XehHwRHO53aI70wxnz3or1H//dA3oQ/Ab4Evgt9peJlMqoGsbRVVcjQdWhL3EpLO73JXLqLPZ3q9nR3fGM379z67epa8"
        "OK6mVpeutIYMy/H6JhlP5ExfxHeguQ+dS1cuXWmgiW2sEFZyy1wSc5c4xRQvnHOFSiVjgiU6FVxwLbnIXOqyzGgmdGZSp+KY5soy"
        "8r8T3Hlmk0l99+vfKxH5lYjSXjXTvdl0PvNdPHetWLOoB2+Zdx2Waml5MprObFVZ82Q5tM/Jka1OEWhNz0o5sFV9p29NvjGcyLlz"
        "dUZu2LWZdeXmKZL2aI9FMWE93qPzNrxj0aP43t62Nqa2nz0yL/3WVFuhzp6ejB1BzX1b6z7pr1ezvirHfRI9nyxGA6Kn5YQM3iyn"
        "pMB+RsaqUo6jsMf/fZ54YXl1dbG2m3UYe712kSAulVwlQpmCOZtRvy02s4oWNDE2oZnSjAqWWi0ctVY5zguldcG5yV2uizgPuRKT"
        "piaRWinrYi6cTJNU5zxnOY9tpq3fUZUqk9BE5zKLE52wWHNbUGmclHy+QPOf1e7uX5/hZ+WP79bb719+pcO2vvmw/clv53beG/lx"
        "ldA6K4y1/rhkMbUspbnPZ2muGctyxrSwitAiltafL8opi5VLZEwFdS4Rae4Vp5WWWRL71ggVp6m2jJssNkVuCk/OhruwgG1p/qWd"
        "hm8CYxojEg=="
    )
)
OK = "install ok installed"


def stanza(name: str, status: str = OK, version: str = "1.0", **more: str) -> str:
    fields = {"Package": name, "Status": status, "Architecture": "amd64", "Version": version, **more}
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value) + "\n"


# -- dpkg ----------------------------------------------------------------------------------------------------------


def test_status_as_dpkg_writes_it() -> None:
    text = stanza("adduser", Description="add users\n and remove them\n .\n Status: purge ok not-installed")
    text += stanza("Gone", "deinstall ok config-files") + stanza("half", "install reinstreq half-installed")
    trouble = Trouble()
    packages = parse_status(text.encode(), trouble)
    assert [(package.name, package.version, package.status) for package in packages] == [
        ("adduser", "1.0", OK),
        ("gone", "1.0", "deinstall ok config-files"),
        ("half", "1.0", "install reinstreq half-installed"),
    ]
    assert trouble.found == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no package"),
        ("\n\n\n", "no package"),
        (stanza("a")[:-1], "breaks off"),
        (stanza("aa") + "Package: bb\nStat", "breaks off"),
        (stanza("aa", ""), "has the status"),
        (stanza("aa", "install ok fine"), "has the status"),
        (stanza("aa", "install ok"), "has the status"),
        (stanza("aa", version=""), "has no version"),
        (stanza("../aa"), "no name of a package"),
        (stanza("aa").replace("Package", "Paket"), "no name of a package"),
        (" x\n" + stanza("aa"), "goes on with what never began"),
        ("rubbish\n" + stanza("aa"), "is no field"),
        (
            stanza("aa", Package2="x") + stanza("bb").replace("Version", "Status: purge ok not-installed\nVersion"),
            "second",
        ),
        ("\0" + stanza("aa"), "NUL"),
    ],
)
def test_a_damaged_status_is_told(text: str, problem: str) -> None:
    trouble = Trouble()
    parse_status(text.encode(), trouble)
    assert any(problem in found for found in trouble.found), trouble.found


@given(st.binary(max_size=400))
def test_any_bytes_are_a_status_or_trouble(raw: bytes) -> None:
    trouble = Trouble()
    packages = parse_status(raw, trouble)
    assert packages or trouble.found


NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,20}", fullmatch=True)


@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.integers(min_value=1))
def test_a_status_that_is_cut_anywhere_is_told_or_loses_whole_packages(names: list[str], cut: int) -> None:
    raw = "".join(stanza(name) for name in names).encode()
    raw = raw[: cut % len(raw)]
    trouble = Trouble()
    packages = parse_status(raw, trouble)
    if not trouble.found:
        # Cut between two packages: what the lists of files beside it tell.
        assert [package.name for package in packages] == names[: len(packages)]
        assert all(package.status == OK and package.version == "1.0" for package in packages)


def dpkg(status: str | None, lists: dict[str, str], **more: Entry) -> dict[str, Entry]:
    files: dict[str, Entry] = {"/var/lib/dpkg/info": Directory(), "/var/lib/dpkg/updates": Directory()}
    if status is not None:
        files["/var/lib/dpkg/status"] = status.encode()
    files |= {f"/var/lib/dpkg/info/{name}.list": text.encode() for name, text in lists.items()}
    return files | {f"/var/lib/dpkg/{path}": entry for path, entry in more.items()}


def test_dpkg_with_files_and_diversions() -> None:
    status = stanza("aa") + stanza("lib") + stanza("old", "deinstall ok config-files")
    lists = {"aa": "/.\n/bin/aa\n", "lib:amd64": "/lib/lib.so\n", "stale": "/bin/stale\n", "old": "/etc/old\n"}
    diversions = b"/bin/sh\n/bin/sh.distrib\naa\n/bin/x\n/bin/x.mine\n:\n"
    diversions += b"/bin/y\n/bin/y.gone\nold\n/bin/z\n/bin/z.made-up\nnobody\n"
    view = root(dpkg(status, lists, diversions=diversions))
    found = read_dpkg(view)
    assert found is not None
    assert found.problems == ()
    assert [package.files for package in found.packages] == [("/.", "/bin/aa"), ("/lib/lib.so",), ("/etc/old",)]
    assert found.left == ("stale",)
    # An administrator's, and those by packages that are not there, are nobody's who would keep the file.
    assert found.diverted == {"/bin/sh": ("/bin/sh.distrib", "aa")}


SUMS = f"""{"0" * 32}  bin/a b
{"1" * 32} *./bin/c
d41d8cd98f00b204e9800998ecf8427e  lib/empty
{"2" * 32}  DEBIAN/postinst
no sum
""".encode()


def test_which_files_have_something_in_them() -> None:
    lists = {"aa": "/.\n/bin\n/bin/a b\n/bin/c\n/lib/empty\n/lib/link\n", "old": "/etc\n"}
    status = stanza("aa") + stanza("old", "deinstall ok config-files")
    found = read_dpkg(root(dpkg(status, lists, **{"info/aa.md5sums": SUMS, "info/old.md5sums": SUMS})))
    assert found is not None
    assert found.problems == ()
    assert [package.filled for package in found.packages] == [{"/bin/a b", "/bin/c"}, set()]


def test_a_list_of_what_is_not_installed_is_left() -> None:
    gone = "purge ok not-installed"
    status = stanza("aa") + stanza("snapd", gone) + stanza("both") + stanza("both", gone, Architecture="i386")
    view = root(dpkg(status, dict.fromkeys(("aa", "snapd", "both:amd64", "both:i386"), "/.\n")))
    found = read_dpkg(view)
    assert found is not None
    assert found.problems == ()
    assert found.left == ("both:i386", "snapd")


def test_an_empty_list_of_what_was_removed_is_no_damage() -> None:
    found = read_dpkg(
        root(dpkg(stanza("aa") + stanza("old", "deinstall ok config-files"), {"aa": "/.\n", "old": ""}))
    )
    assert found is not None
    assert found.problems == ()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (dpkg(None, {"aa": ""}), "it is not there"),
        (dpkg(stanza("aa"), {}), "no list of files"),
        (dpkg(stanza("aa") * 2, {"aa": ""}), "twice"),
        (dpkg(stanza("aa"), {"aa": ""}, **{"updates/0001": b"x"}), "interrupted"),
        (dpkg(stanza("aa"), {"aa": "/.\n"}, diversions=b"/bin/sh\n/bin/sh.distrib\n"), "diversions breaks off"),
        (dpkg(stanza("aa"), {"aa": "/.\n"}, diversions=b"/bin/sh\n/bin/sh.distrib\nda"), "diversions breaks off"),
        (dpkg(stanza("aa"), {"aa": ""}), "aa.list is empty, but aa is installed"),
        (dpkg(stanza("aa"), {"aa": "/.\n/bin/a"}), "aa.list is damaged"),
        (dpkg(stanza("aa"), {"aa": "/.\n"}, **{"info/aa.md5sums": SUMS}), "aa.list lacks files that"),
        (dpkg(stanza("aa"), {"aa:amd64": "/.\n"}, **{"info/aa:amd64.md5sums": SUMS}), "lacks files that"),
        (dpkg(stanza("aa"), {"aa": "/.\n"}, **{"info/aa.md5sums": Directory()}), "a directory"),
        (dpkg(stanza("aa"), {"aa": "/.\n\n/bin/a\n"}), "aa.list is damaged"),
        (dpkg(stanza("aa"), {"aa": "/.\n"}, diversions=Directory()), "a directory"),
        ({"/var/lib/dpkg/status": Directory()}, "a directory"),
        (dpkg(stanza("aa"), {}, **{"info/aa.list": Directory()}), "a directory"),
    ],
)
def test_a_damaged_dpkg_is_told(files: dict[str, Entry], problem: str) -> None:
    found = read_dpkg(root(files))
    assert found is not None
    assert any(problem in text for text in found.problems), found.problems


def test_dpkg_without_dpkg() -> None:
    assert read_dpkg(root({"/usr": Directory()})) is None
    base = b"Package: base-files\nVersion: 12\nArchitecture: amd64\n"
    found = read_dpkg(root({"/var/lib/dpkg/status.d/base": base}))
    assert found is not None
    assert [(package.name, package.status) for package in found.packages] == [("base-files", OK)]
    assert found.problems == ()


# -- rpm -----------------------------------------------------------------------------------------------------------


def test_a_header_of_rpm_itself() -> None:
    package = parse_header(REAL)
    assert (package.name, package.version, package.arch) == ("osgates-sample", "4:1.2-3", "noarch")
    assert package.files == ("/etc/sample.conf", "/usr/bin/sample")


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (b"py-certbot-2.9-1.fc43.src.rpm", "py-certbot"),
        (b"(none)", ""),
        (b"a b-1-2", ""),
    ],
)
def test_what_a_package_of_rpm_was_built_from(said: bytes, source: str) -> None:
    tags = ((1000, 6, 1, b"a\0"), (1001, 6, 1, b"1\0"), (1044, 6, 1, said + b"\0"))
    assert parse_header(header(*tags)).source == source


def test_a_data_base_of_rpm() -> None:
    trouble = Trouble()
    raw = bytearray(database(REAL, simple(b"bash", b"5.2"), simple(b"gpg-pubkey")))
    raw[18:20] = b"\2\2"  # as rpm leaves it: made for a write-ahead log
    packages = parse_database(bytes(raw), trouble)
    assert [(package.name, package.version) for package in packages] == [
        ("osgates-sample", "4:1.2-3"),
        ("bash", "5.2-2.fc43"),
    ]
    assert trouble.found == []


@pytest.mark.parametrize(
    ("flags", "optional"),
    [
        ((0, 1 << 6, 1), {"/usr/bin/b"}),  # %ghost, and %config
        ((1 << 1 | 1 << 7, 0, 1 << 3), {"/usr/bin/a", "/usr/bin/c"}),  # %doc %license, and %missingok
    ],
)
def test_files_that_rpm_itself_does_not_miss(flags: tuple[int, ...], optional: set[str]) -> None:
    package = parse_header(with_files(flags))
    assert package.files == ("/usr/bin/a", "/usr/bin/b", "/usr/bin/c")
    assert package.optional == optional


def test_flags_of_other_files_are_refused() -> None:
    with pytest.raises(MalformedHeader, match="flags do not match"):
        parse_header(with_files((0, 64)))


@pytest.mark.parametrize(
    ("beside", "problem"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"-wal": b"x"}, "never taken over", id="a log"),
        pytest.param({"-wal": b""}, "", id="an empty log"),
        pytest.param({"-journal": bytes.fromhex("d9d505f920a163d7") + bytes(504)}, "would undo them", id="hot"),
        pytest.param({"-journal": b""}, "", id="truncated"),
        pytest.param({"-journal": bytes(512) + b"x" * 512}, "", id="its head is zeros"),
        pytest.param({"-journal": Directory()}, "a directory", id="a directory"),
    ],
)
def test_changes_beside_a_data_base_of_rpm(beside: dict[str, Entry], problem: str) -> None:
    path = "/usr/lib/sysimage/rpm/rpmdb.sqlite"
    files: dict[str, Entry] = {path: database(simple(b"bash")), **{path + end: what for end, what in beside.items()}}
    (found,) = read_rpm(root(files))
    assert [problem in told for told in found.problems] == ([True] if problem else [])


def test_a_transaction_of_sqlite_that_was_struck_leaves_a_hot_journal(tmp_path: Path) -> None:
    path = tmp_path / "rpmdb.sqlite"
    path.write_bytes(database(simple(b"bash"), simple(b"snapd")))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM Name WHERE hnum = 2")
    connection.execute("DELETE FROM Packages WHERE hnum = 2")
    connection.execute("CREATE TABLE more (x)")
    # More than the cache holds: part of it reaches the file.
    connection.executemany("INSERT INTO more VALUES (?)", [(b"y" * 4000,)] * 200)
    home = "/usr/lib/sysimage/rpm/rpmdb.sqlite"
    struck: dict[str, Entry] = {home: path.read_bytes(), f"{home}-journal": Path(f"{path}-journal").read_bytes()}
    connection.execute("COMMIT")
    connection.close()
    (found,) = read_rpm(root(struck))
    assert any("SQLite would undo them" in problem for problem in found.problems)


# Counts to the end of time, if it may.
ENDLESS = (
    "CREATE TABLE Name (hnum);CREATE VIEW Packages AS WITH RECURSIVE n(hnum, blob) AS "
    "(SELECT 1, x'00' UNION ALL SELECT hnum + 1, blob FROM n) SELECT * FROM n;"
)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "no data base of SQLite"),
        (b"SQLite format 3\0" + bytes(200), "SQLite cannot read it"),
        (database(REAL)[:5000], "SQLite cannot read it"),
        (database(), "no package"),
        (database(REAL, index=False), "its index of names has 0 packages, the table 1"),
        (database(schema="CREATE TABLE Other (x);"), "no table Packages"),
        (database(schema=ENDLESS), "no table Packages"),
        (database(simple(b"bash")[:-1]), "a header of"),
        (database(simple(b"bash"), simple(b"a b")), "tag 1000 is"),
        (database(header((1000, 6, 1, b"bash\0"))), "tag 1001 is missing"),
    ],
)
def test_a_damaged_data_base_of_rpm_is_told(raw: bytes, problem: str) -> None:
    trouble = Trouble()
    parse_database(raw, trouble)
    assert any(problem in found for found in trouble.found), trouble.found


@settings(max_examples=60)
@given(st.data())
def test_a_changed_header_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        package = parse_header(bytes(raw))
    except MalformedHeader:
        return
    assert package.name
    assert package.version


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_changed_data_base_never_passes_for_a_whole_one(data: st.DataObject) -> None:
    raw = bytearray(database(simple(b"bash"), simple(b"snapd")))
    start = data.draw(st.integers(0, len(raw) - 64))
    raw[start : start + 64] = data.draw(st.binary(min_size=64, max_size=64))
    trouble = Trouble()
    names = {package.name for package in parse_database(bytes(raw), trouble)}
    assert trouble.found or len(names) == 2


def test_a_data_base_whose_schema_is_no_text_is_told() -> None:
    raw = bytearray(database(simple(b"bash"), simple(b"snapd")))
    raw[4091:4155] = b"\x80" + bytes(63)
    trouble = Trouble()
    parse_database(bytes(raw), trouble)
    assert any("SQLite cannot read it" in problem for problem in trouble.found)


def test_where_rpm_keeps_it() -> None:
    home = "/usr/lib/sysimage/rpm"
    files: dict[str, Entry] = {
        f"{home}/rpmdb.sqlite": database(REAL),
        f"{home}/rpmdb.sqlite-wal": b"x",
        f"{home}/Packages": b"x",
        "/var/lib/rpm": Link("../../usr/lib/sysimage/rpm"),
    }
    found = read_rpm(root(files))
    assert [(database.path.rpartition("/")[2], len(database.packages)) for database in found] == [
        ("rpmdb.sqlite", 1),
        ("Packages", 0),
    ]
    assert "never taken over" in found[0].problems[0]
    assert "Berkeley DB" in found[1].problems[0]


# -- Flatpak and snap ----------------------------------------------------------------------------------------------


def test_flatpaks_and_snaps() -> None:
    files: dict[str, Entry] = {
        "/etc/flatpak/installations.d/more.conf": b'[Installation "more"]\nPath=/srv/apps\n',
        "/etc/flatpak/installations.d/odd.conf": b"\0[",
        "/var/lib/snapd/snaps/firefox_4173.snap": b"",
        "/var/lib/snapd/snaps/core_22_1.snap": b"",
    }
    for top in ("var/lib/flatpak", "srv/apps", "home/me/.local/share/flatpak"):
        ref = f"/{top}/app/org.{top.partition('/')[0]}.App/x86_64/stable"
        files |= {f"{ref}/0a1b/files/x": b"", f"{ref}/active": Link("0a1b"), f"/{top}/app/org.x.current": Link("x")}
    view = root(files)
    found = read_flatpak(view)
    assert found is not None
    assert [package.name for package in found.packages] == ["org.var.App", "org.srv.App", "org.home.App"]
    assert [problem.split(":")[0] for problem in found.problems] == ["/etc/flatpak/installations.d/odd.conf"]
    snaps = read_snap(view)
    assert snaps is not None
    assert {package.name for package in snaps.packages} == {"firefox", "core_22"}


def test_flatpaks_of_accounts_that_live_elsewhere() -> None:
    passwd = "root:x:0:0::/root:/bin/sh\n+nobody\nodd:x:1:1::\nkiosk:x:1000:1000::/srv/kiosk/:/bin/sh\nme:x:2:2::/:\n"
    files: dict[str, Entry] = {"/etc/passwd": passwd.encode(), "/usr/lib/passwd": b"old:x:3:3::/var/old"}
    for home in ("/srv/kiosk", "", "/var/old", "/srv/other"):
        files[f"{home}/.local/share/flatpak/app/org.x{home.replace('/', '.')}/x86_64/stable/0a1b/metadata"] = b""
    found = read_flatpak(root(files))
    assert found is not None
    assert {package.name for package in found.packages} == {"org.x", "org.x.srv.kiosk", "org.x.var.old"}
    assert found.problems == ()


@pytest.mark.parametrize(
    ("passwd", "problem"),
    [
        (Directory(), "a directory"),
        ("".join(f"u{number}:x:1:1::/srv/{number}:\n" for number in range(1001)).encode(), "more than 1000 homes"),
    ],
)
def test_homes_that_cannot_be_told_are_a_problem(passwd: Entry, problem: str) -> None:
    found = read_flatpak(root({"/etc/passwd": passwd}))
    assert found is not None
    assert [problem in told for told in found.problems] == [True]


def test_neither_flatpak_nor_snap() -> None:
    view = root({"/usr": Directory()})
    assert read_flatpak(view) is None
    assert read_snap(view) is None
