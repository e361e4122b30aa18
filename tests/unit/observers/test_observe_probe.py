"""Labels at execve: the probe run here in both languages and both ways, its answers parsed, and hostile ones."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_shell import LocalShell, local_shell

from pytest_osgates.observers.confinement import parse_probe, probe
from pytest_osgates.observers.confinement.parse_probe import probed
from pytest_osgates.observers.confinement.probe import QUERIES, Question
from pytest_osgates.observers.confinement.probe_perl import PERL
from pytest_osgates.observers.confinement.probe_python import PYTHON
from pytest_osgates.vm.errors import ChannelError, UsageError

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do what the guest's root does")
EXIT_STOP = "trial", "ptrace", "label", "apparmor", "unconfined", "0", "1:2", "/usr/bin/perl"


def record(*fields: str) -> bytes:
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in (str(len(fields)), *fields))


def label(number: int, text: str, *, before: str = "1:2", after: str = "1:2", place: str = "1:2") -> bytes:
    return record("answer", str(number), before, after, "label", "apparmor", text, "0", place, "/usr/bin/x")


def failed(number: int, stage: str, errno: int, before: str = "1:2") -> bytes:
    return record("answer", str(number), before, before, "failed", stage, str(errno))


def answer(
    *more: bytes, trial: tuple[str, ...] = EXIT_STOP, own: str = "unconfined\n", finished: bool = True
) -> bytes:
    sums = f"{'a' * 64}  /usr/bin/x\0".encode()
    parts = [record("enabled", "Y"), record("scope", "2"), record("blob", "sums", str(len(sums))) + sums]
    parts += [record("began", "100"), record("with", "perl")]
    parts += [record("own", "apparmor", own, "0"), record("first", "apparmor", "unconfined", "0"), record(*trial)]
    parts += [*more, *([record("finished")] if finished else [])]
    return b"".join(parts) + record("ended", "103") + record("done")


def test_an_answer() -> None:
    told = record("query", "x", "net", "allow 0x00000010\ndeny 0x00000000\naudit 0x0\nquiet 0x0\n", "0")
    seen = probed(
        answer(label(0, "x (enforce)\n"), failed(1, "exec", 2, ""), told, record("query", "x", "f", "", "2")), 2
    )
    assert (seen.enabled, seen.scope, seen.interpreter, seen.method, seen.seconds) == (True, 2, "perl", "ptrace", 3)
    assert (seen.own, seen.first, seen.problem, seen.refused) == ("unconfined", "unconfined", "", False)
    assert (seen.answers[0].label, seen.answers[0].same, seen.answers[0].error) == ("x (enforce)", True, "")
    assert seen.answers[1].error == "there is no such file in the guest"
    assert seen.sums == {"/usr/bin/x": "a" * 64}
    assert seen.allowed == {"x": {"net": 16, "f": None}}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (label(0, "x (enforce)", after="1:3"), "the file changed"),
        (record("answer", "0", "1:2", "1:2", "label", "current", "", "22", "1:2", "/x"), "no label (EINVAL"),
        (failed(0, "exec", 2), "what it runs on (its interpreter) is not there"),
        (failed(0, "exec", 13), "no x-bit, or its file system is mounted noexec"),
        (failed(0, "exec", 8), "ENOEXEC"),
        (failed(0, "profile", 2), "is it loaded?"),
        (failed(0, "late", 0), "did not begin in time"),
        (failed(0, "ran", 0), "was not stopped"),
        (failed(0, "new", 0), "could not try it"),
        (failed(0, "exec", 99999), "error unknown"),
    ],
)
def test_what_is_no_label(said: bytes, error: str) -> None:
    assert error in probed(answer(said), 1).answers[0].error


def test_what_runs_may_be_another_file() -> None:
    assert probed(answer(label(0, "x (enforce)", place="1:9")), 1).answers[0].same is False
    assert probed(answer(label(0, "x (enforce)", place="")), 1).answers[0].same is None


def test_nobody_may_ask() -> None:
    seen = probed(answer(trial=("trial", "ptrace", "failed", "ptrace", "1")), 0)
    assert seen.refused
    assert "nobody may trace it (EPERM" in seen.problem
    seen = probed(answer(trial=("trial", "exit", "failed", "ran", "0")), 0)
    assert not seen.refused
    assert "was not stopped" in seen.problem
    seen = probed(record("enabled", "N") + record("with", "") + record("done"), 5)
    assert "neither perl nor python3" in seen.problem
    assert not seen.enabled


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (answer()[:-3], 0),
        (answer(), 1),
        (answer(label(0, "x"), label(0, "x")), 2),
        (answer(label(0, "x"), label(2, "x")), 2),
        (answer(label(0, "x"), finished=False), 1),
        (answer(record("answer", "0", "", "", "label", "x")), 1),
        (answer(record("answer", "-1", "", "", "failed", "exec", "2")), 1),
        (answer(record("query", "x")), 0),
    ],
)
def test_a_broken_answer_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(ChannelError):
        probed(data, count)


@given(st.data())
def test_a_changed_answer_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(answer(label(0, "x (enforce)"), failed(1, "exec", 2)))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        seen = probed(bytes(raw), 2)
    except ChannelError:
        return
    assert seen.problem or len(seen.answers) == 2


# -- run here -----------------------------------------------------------------------------------------------------


class OneLanguage(LocalShell):
    """Hides the other language from the script."""

    def __init__(self, directory: Path, hide: str) -> None:
        super().__init__(directory)
        self.hide = hide

    def run(self, command: str, **options: object) -> object:  # type: ignore[override]
        return super().run(command.replace(f"exec {self.hide} -", "exec false -"), **options)  # type: ignore[arg-type]


def _leaves(mark: Path) -> bytes:
    """A static program for x86-64: open(mark, O_CREAT | O_WRONLY, 0644), exit(0)."""
    base, start = 0x400000, 64 + 56
    code = b"\xbf@@@@\xbe\x41\0\0\0\xba\xa4\x01\0\0\xb8\x02\0\0\0\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05"
    code = code.replace(b"@@@@", struct.pack("<I", base + start + len(code)))
    body = code + os.fsencode(mark) + b"\0"
    size = start + len(body)
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + body


def _programs(directory: Path) -> dict[str, Path]:
    """Programs that would leave a trace if a single instruction of theirs ran, and others that cannot run."""
    mark = directory / "ran"
    script = directory / "script"
    script.write_text(f"#!/bin/sh\n: >{mark}\n")
    orphan = directory / "orphan"
    orphan.write_text("#!/nowhere/interpreter\n")
    static = directory / "static"
    static.write_bytes(_leaves(mark))
    plain = directory / "plain"
    plain.write_text("#!/bin/sh\n")
    for path in (script, orphan, static):
        path.chmod(stat.S_IRWXU)
    return {"script": script, "static": static, "orphan": orphan, "plain": plain, "mark": mark}


@ROOT
@pytest.mark.parametrize("method", ["ptrace", "exit"])
@pytest.mark.parametrize("hidden", ["perl", "python3"])
def test_no_instruction_is_run(tmp_path: Path, method: str, hidden: str) -> None:
    files = _programs(tmp_path)
    names = ["script", "static", "orphan", "plain"]
    questions = [Question(str(files[name])) for name in names] + [Question("/nowhere"), Question("/bin/sh", "p", "u")]
    seen = probe.probe(OneLanguage(tmp_path, hidden), questions, method=method)  # type: ignore[arg-type]
    assert seen.problem == ""
    assert seen.interpreter == ("python3" if hidden == "perl" else "perl")
    assert seen.method == method
    assert not files["mark"].exists(), "a program ran"
    script, static, orphan, plain, nowhere, unit = seen.answers
    stopped = [found for found in (script, static) if found.label or "gave no label" in found.error]
    assert len(stopped) == 2, seen.answers
    assert "interpreter" in orphan.error
    assert "x-bit" in plain.error
    assert nowhere.error == "there is no such file in the guest"
    assert unit.error, "no profile of this name is loaded here"
    assert set(seen.sums) == {str(files[name]) for name in names} | {"/bin/sh"}
    # The program would have left its trace: otherwise its absence says nothing.
    subprocess.run([files["static"]], check=True)
    assert files["mark"].exists()


@ROOT
def test_many_at_once(tmp_path: Path) -> None:
    sh = shutil.which("sh") or "/bin/sh"
    seen = probe.probe(local_shell(tmp_path), [Question(sh)] * 100)
    assert len(seen.answers) == 100
    assert len({found.error for found in seen.answers}) == 1


def test_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        probe.probe(local_shell(tmp_path), [Question("/bin/sh")] * (probe.MAX_PROGRAMS + 1))


def test_what_is_put_into_the_list(tmp_path: Path) -> None:
    listed = probe._listed([Question("/a b"), Question("/c", "p q", "u"), Question("/d", "-p"), Question("/e\udcff")])
    assert listed == b"/a b\0\0/c\0=p q\0/d\0-p\0/e\xff\0\0"


def test_both_languages_say_the_same_tags() -> None:
    for tag in ("own", "first", "trial", "answer", "query", "finished"):
        assert f"'{tag}'" in PERL or f"('{tag}'," in PERL
        assert f'"{tag}"' in PYTHON
    assert all("=" in query and " " not in query for query in QUERIES)
    assert parse_probe.Probed(False, None, None, "").answers == ()
