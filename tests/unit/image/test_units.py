"""systemd's units as they lie in an image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_root import Entry, Link, root

from pytest_osgates.image.units import SYSTEM, listens_on_internet, parse_unit, read_units, split_command


def test_a_unit() -> None:
    text = "# c\n[Unit]\nDescription=a \\\n# in between\n  b\n[Service]\n"
    text += "ExecStart=/bin/a\nExecStart=\nExecStart = /bin/b x\n"
    assert parse_unit(text) == {
        ("Unit", "Description"): ["a  b"],
        ("Service", "ExecStart"): ["/bin/b x"],
    }


def test_drop_ins_and_masks() -> None:
    view = root(
        {
            "/usr/lib/systemd/system/a-b.service": b"[Service]\nExecStart=/bin/a\nUser=one\n",
            "/usr/lib/systemd/system/a-b.service.d/10.conf": b"[Service]\nUser=two\n",
            "/etc/systemd/system/a-b.service.d/20.conf": b"[Service]\nExecStart=\nExecStart=/bin/other\n",
            "/usr/lib/systemd/system/a-.service.d/x.conf": b"[Service]\nUser=general\nGroup=g\n",
            "/usr/lib/systemd/system/a-b.service.d/no.txt": b"[Service]\nUser=ignored\n",
            "/usr/lib/systemd/system/masked.service": b"[Service]\nExecStart=/bin/m\n",
            "/etc/systemd/system/masked.service": Link("/dev/null"),
            "/usr/lib/systemd/system/empty.service": b"",
            "/usr/lib/systemd/system/t@.socket": b"[Socket]\nListenStream=80\n",
            "/usr/lib/systemd/system/other.timer": b"[Timer]\n",
            "/lib": Link("usr/lib"),
        }
    )
    found = {unit.name: unit for unit in read_units(view, SYSTEM)}
    assert set(found) == {"a-b.service", "t@.socket", "other.timer"}
    unit = found["a-b.service"]
    assert unit.values("Service", "ExecStart") == ["/bin/other"]
    assert unit.value("Service", "User") == "general", "x.conf comes after 10.conf, wherever it lies"
    assert unit.value("Service", "Group") == "g"
    assert unit.value("Service", "Type") == ""


LIB, ETC = "/usr/lib/systemd/system", "/etc/systemd/system"


@pytest.mark.parametrize(
    ("files", "user"),
    [
        ({f"{LIB}/a-b.service.d/9.conf": "lib", f"{ETC}/a-b.service.d/1.conf": "etc"}, "lib"),
        # One name: /etc counts, the other one is not there.
        ({f"{LIB}/a-b.service.d/1.conf": "lib", f"{ETC}/a-b.service.d/1.conf": "etc"}, "etc"),
        ({f"{LIB}/a-b.service.d/1.conf": "lib", f"{ETC}/a-b.service.d/1.conf": ""}, "unit"),
        ({f"{LIB}/a-b.service.d/1.conf": "lib", f"{ETC}/a-b.service.d/1.conf": None}, "unit"),
        ({f"{LIB}/a-b.service.d/1.conf": "own", f"{ETC}/service.d/1.conf": "all"}, "own"),
        ({f"{LIB}/a-b.service.d/1.conf": "own", f"{LIB}/a-.service.d/1.conf": "all"}, "own"),
        ({f"{LIB}/a-b.service.d/1.conf": "own", f"{ETC}/a-.service.d/1.conf": "all"}, "all"),
        ({f"{ETC}/service.d/2.conf": "all", f"{ETC}/a-b.service.d/1.conf": "own"}, "all"),
    ],
)
def test_which_drop_in_counts(files: dict[str, str | None], user: str) -> None:
    entries: dict[str, Entry] = {f"{LIB}/a-b.service": b"[Service]\nUser=unit\n"}
    for path, value in files.items():
        text = f"[Service]\nUser={value}\n" if value else ""
        entries[path] = Link("/dev/null") if value is None else text.encode()
    (unit,) = read_units(root(entries), SYSTEM)
    assert unit.value("Service", "User") == user


def test_drop_ins_of_instances() -> None:
    entries: dict[str, Entry] = {
        f"{LIB}/a-t@x.service": b"[Service]\n",
        f"{LIB}/a-t@.service.d/1.conf": b"[Service]\nUser=template\n",
        f"{LIB}/a-.service.d/0.conf": b"[Service]\nUser=prefix\nGroup=g\n",
    }
    (unit,) = read_units(root(entries), SYSTEM)
    assert (unit.value("Service", "User"), unit.value("Service", "Group")) == ("template", "g")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/bin/a -b c", ["/bin/a", "-b", "c"]),
        ("@-/bin/a argv0 x", ["/bin/a", "x"]),
        ("-@/bin/busybox httpd x", ["/bin/busybox", "httpd", "x"]),
        ("""/bin/sh -c 'nc -l 1 | "x"' --k="a b" """, ["/bin/sh", "-c", 'nc -l 1 | "x"', "--k=a b"]),
        (r'/bin/a "q\"uote"', ["/bin/a", 'q"uote']),
        ("", []),
        ('/bin/a "open', ["/bin/a", "open"]),
    ],
)
def test_command_lines(line: str, words: list[str]) -> None:
    assert split_command(line) == words


@pytest.mark.parametrize(
    ("address", "internet"),
    [
        ("80", True),
        ("0.0.0.0:80", True),
        ("[::]:80", True),
        ("example.org:1", True),
        ("%i", True),
        ("/run/x", False),
        ("@abstract", False),
        ("%t/x", False),
        ("vsock::1", False),
        ("", False),
    ],
)
def test_addresses(address: str, internet: bool) -> None:
    assert listens_on_internet(address) is internet


@given(st.text(max_size=300))
def test_any_text_is_a_unit(text: str) -> None:
    found = parse_unit(text)
    assert all(section and all(values) for (section, _), values in found.items())
    for values in found.values():
        for value in values:
            split_command(value)
