"""What a guest answers about its settings may be anything: it becomes facts with problems, or is refused."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from gate_samples import HOSTILE
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from settings_samples import policy

from pytest_osgates.checks.settings import GATE
from pytest_osgates.judging import judge
from pytest_osgates.model import State, Verdict
from pytest_osgates.observers.settings import facts, parse, parse_many
from pytest_osgates.observers.settings.answers import Answers, Blob, read
from pytest_osgates.vm.errors import ChannelError

quick = hypothesis_settings(max_examples=100, deadline=None, derandomize=True, database=None)
END = b"1\0end\0"


def record(*fields: str) -> bytes:
    return b"".join(field.encode() + b"\0" for field in (str(len(fields)), *fields))


def blob(tag: str, data: bytes, status: int = 0) -> bytes:
    return record("blob", tag, str(status), str(len(data))) + data


FIELD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.lists(FIELD, min_size=1, max_size=5) | st.binary(), max_size=6))
@quick
def test_what_was_written_is_read(entries: list[list[str] | bytes]) -> None:
    data = b""
    wanted: list[object] = []
    for value in entries:
        if isinstance(value, bytes):
            data += blob("tag", value, 3)
            wanted.append(Blob(3, value))
        elif value[0] not in {"blob", "end"}:
            data += record(*value)
            wanted.append((value[0], tuple(value[1:])))
    answers = read(data + END)
    assert answers.blobs.get("tag", []) == [value for value in wanted if isinstance(value, Blob)]
    said = [value for value in wanted if not isinstance(value, Blob)]
    assert sorted((tag, fields) for tag, many in answers.said.items() for fields in many) == sorted(said)  # type: ignore[type-var]


WHOLE = record("sysctl", "kernel/x", "1") + blob("sysctls", b"kernel/x:2\n") + END


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_an_answer_that_is_cut_short_anywhere_is_refused(cut: int) -> None:
    assert read(WHOLE).blob("sysctls") == Blob(0, b"kernel/x:2\n")
    with pytest.raises(ChannelError):
        read(WHOLE[:cut])


@pytest.mark.parametrize(
    "data",
    [
        *(b"x\0", b"0\0" + END, b"-1\0a\0" + END, b"1000\0" + END, b"17\0" + b"a\0" * 17 + END, b"\xb2\0a\0" + END),
        *(END + b"x", END + END, record("blob", "t", "0", "9999") + b"x" + END),
        *(record("blob", "t", "0") + END, record("blob", "t", "0", "-1") + END, record("blob", "t", "x", "0") + END),
        HOSTILE.encode(),
    ],
)
def test_an_answer_of_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(ChannelError, match="settings"):
        read(data)


@given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda data: data + END))
@quick
def test_no_answer_is_too_odd(data: bytes) -> None:
    with contextlib.suppress(ChannelError):
        assert isinstance(read(data), Answers)


def test_an_answer_that_says_nothing_proves_nothing() -> None:
    demanded = policy()
    seen = facts(read(END), demanded.questions(State.LIVE), State.LIVE)
    judgement = judge(GATE, seen, demanded)
    assert judgement.verdict is Verdict.NOT_PROVEN
    assert {finding.key for finding in judgement.findings} == {
        (demand.rule, demand.subject) for demand in demanded.demands(State.LIVE)
    }


MOUNTS = st.builds(
    lambda path, source, options: (path, source, options),
    st.text("ab \t\n\\/é", max_size=8).map(lambda text: "/" + text),
    st.text("ab \\", min_size=1, max_size=5),
    st.lists(st.sampled_from(["rw", "ro", "size=1k", "lowerdir=/a b", "seclabel"]), min_size=1, unique=True),
)


def escaped(text: str) -> bytes:
    """As the kernel's mangle() does it."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in text.encode())


@given(MOUNTS, st.lists(st.sampled_from([b"shared:1", b"master:2", b"propagate_from:3", b"unbindable"])))
@quick
def test_a_mount_that_the_kernel_wrote_is_read(mount: tuple[str, str, list[str]], optional: list[bytes]) -> None:
    path, source, options = mount
    tags = b"".join(tag + b" " for tag in optional)
    super_options = b",".join(map(escaped, options))
    line = b"36 35 98:0 /root %b rw,nosuid %b- ext4 %b %b" % (escaped(path), tags, escaped(source), super_options)
    found = parse.mount(line)
    assert (found.id, found.parent, found.path, found.source) == (36, 35, path, source)
    assert found.options == ("rw", "nosuid")
    assert found.super_options == tuple(options)


@given(st.binary(max_size=60) | st.text("0123 :/-ab\\\n", max_size=60).map(str.encode))
@quick
def test_a_line_that_is_no_mount_is_a_problem_for_all_of_them(line: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse.mount(line)
        return
    fact = parse.mounts(read(blob("mounts", b"1 0 0:1 / / rw - a b rw\n" + line + b"\n") + END))
    if line.strip(b"\n"):
        assert fact.problem
        assert fact.mounts == ()


@pytest.mark.parametrize(
    "passwd",
    [
        "root:x:0:0::/root",
        "root:x:zero:0::/:/",
        "root:x:0:zero::/:/",
        ":x:0:0::/:/",
        "root:x:-1:0::/:/",
        "root:x:4294967296:0::/:/",
        "root:x:0:4294967296::/:/",
        # Names that would be shown as another one's.
        "root:x:0:0::/:/\nroot :x:0:0::/:/",
        "root:x:0:0::/:/\nro\x1b[mot:x:0:0::/:/",
        "a" * (1 << 21),
    ],
)
def test_a_table_of_users_that_is_none(passwd: str) -> None:
    answers = read(blob("passwd", passwd.encode()) + blob("group", b"root:x:0:\n") + END)
    fact = parse_many.accounts(answers)
    assert fact.problem
    assert fact.users == ()


def test_users_that_cannot_all_be_listed_are_a_problem() -> None:
    tables = blob("passwd", b"root:x:0:0::/:/\n") + blob("group", b"root:x:0:\n")
    assert not parse_many.accounts(read(tables + END)).problem
    assert parse_many.accounts(read(tables + blob("getent-passwd", b"", 124) + END)).problem
    assert not parse_many.accounts(read(tables + blob("getent-passwd", b"", 3) + END)).problem
    assert parse_many.accounts(read(blob("group", b"root:x:0:\n") + END)).problem


def test_what_a_guest_says_is_made_harmless() -> None:
    """No escape sequence of a guest's reaches a report by way of a name."""
    data = blob("dpkg", b"\x1b[31mname\t1\tall\tinstall ok installed\n")
    data += record("nomanager", "rpm") + record("nomanager", "flatpak") + END
    (package,) = parse_many.packages(read(data))["dpkg"].packages
    assert package.name == "name"
    unit = "\n".join(f"{key}={HOSTILE.splitlines()[0]}" for key in ("Id", "LoadState", "ActiveState", "FragmentPath"))
    fact = parse.units(read(blob("units", unit.encode()) + END), ["a.service"])["a.service"]
    assert "\x1b" not in fact.model_dump_json()
    assert "\\u001b" not in fact.model_dump_json()


@given(st.sets(st.sampled_from(["gone", "dead", "own", "good", "lacking"])))
@quick
def test_processes_that_end_or_are_ours_are_counted_and_left_out(kinds: set[str]) -> None:
    library, pids = "/a.so", {"gone": "2", "dead": "3", "own": "4", "good": "5", "lacking": "6"}
    mapped = b"/proc/5/maps:00400000-00401000 r-xp 00000000 00:01 7  /a.so\n"
    data = blob("preload", b"/a.so\n") + blob("own", b"/proc/4/cgroup\n/proc/4/environ\n")
    data += (record("library", library, library) + blob(f"mapped:{library}", mapped)) * 2
    for kind in kinds:
        pid = pids[kind]
        data += record("gone-process", pid) if kind == "gone" else record("process", pid, "1", kind, "/x", "/")
        data += b"" if kind in {"gone", "dead"} else record("alive", pid)
    questions = policy(f'[[library]]\npath = "{library}"\n').questions(State.LIVE)
    fact = parse_many.processes(read(data + END), questions)
    assert {process.name for process in fact.processes} == kinds & {"good", "lacking"}
    assert (fact.own, fact.gone) == (len(kinds & {"own"}), len(kinds & {"gone", "dead"}))
    assert all(bool(process.maps) == (process.name == "good") for process in fact.processes)


def test_maps_that_were_read_only_once_are_a_problem() -> None:
    questions = policy('[[library]]\npath = "/a.so"\n').questions(State.LIVE)
    data = blob("own", b"") + record("library", "/a.so", "/a.so") + blob("mapped:/a.so", b"")
    assert parse_many.processes(read(data + END), questions).problem


def test_of_two_passwords_for_one_name_the_first_counts() -> None:
    data = blob("passwd", b"root:x:0:0::/:/\n") + blob("group", b"root:x:0:\n") + record("shadowed")
    data += record("shadow", "root", "none", "1") + record("shadow", "root", "locked", "1")
    (user,) = parse_many.accounts(read(data + END)).users
    assert user.password == "none"


@pytest.mark.parametrize(
    "said",
    [
        "Failed to connect to bus: No such file or directory",
        "Failed to connect to system scope bus via local transport: No such file or directory\n",
        "sh: /usr/bin/systemctl: No such file or directory",
    ],
)
def test_a_systemctl_that_reached_nobody_knows_of_no_template(said: str) -> None:
    data = record("template", "wait@.service", "", said)
    assert parse.units(read(data + END), ["wait@.service"])["wait@.service"].problem


@pytest.mark.parametrize("target", ["/dev/null ", "/dev/nu\x1b[mll", "/dev//null\n", "/dev/null\u202e"])
def test_a_link_is_not_shown_as_another(target: str) -> None:
    questions = policy('[[file]]\npaths = ["/a"]\nlinks_to = "/dev/null"\nowner = "root"').questions(State.LIVE)
    stat = "a1ff 0 0 1|ro\x1b[mot|root|/a\n"
    data = blob("lstat", stat.encode()) + blob("stat", stat.encode()) + record("link", "/a", target, target) + END
    fact = parse.files(read(data), questions)["/a"]
    assert fact.link.startswith("'")
    assert fact.link == fact.leads_to
    assert fact.own is not None
    assert (fact.own.owner, fact.own.group) == ("'ro\\x1b[mot'", "root")
