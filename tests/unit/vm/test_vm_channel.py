"""The framed shell, spoken with a real shell of this machine over a socket pair, and with hostile stand-ins."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vm_fakes import LocalGuest, ScriptedGuest, is_running, wait_for

from pytest_osgates.vm.errors import ChannelError, GuestTimeout, HostError, MachineDied, UsageError
from pytest_osgates.vm.guest import channel
from pytest_osgates.vm.guest.channel import ShellResult
from pytest_osgates.vm.guest.testinfra_backend import guest_host

EVERY_BYTE = bytes(range(256))


@pytest.fixture(autouse=True)
def _impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait looks around more often than in earnest, except where that is what is tested."""
    if "promptly" not in request.node.name:
        monkeypatch.setattr(channel, "LOOK", 0.05)


quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- what comes back


def test_status_and_both_outputs_are_kept_apart(guest: LocalGuest) -> None:
    done = guest.shell.run("printf out; printf err >&2; exit 3")
    assert done == ShellResult("printf out; printf err >&2; exit 3", 3, b"out", b"err")
    assert guest.shell.requests == 1


def test_statuses(guest: LocalGuest) -> None:
    for status in (0, 1, 2, 124, 125, 126, 127, 128, 137, 255):
        assert guest.shell.run(f"exit {status}").status == status
    assert guest.shell.run("kill -TERM $$").status == 128 + 15
    assert guest.shell.run("no-such-program-anywhere 2>/dev/null").status == 127
    assert guest.shell.run("if then").status == 2


def test_no_output_at_all(guest: LocalGuest) -> None:
    assert guest.shell.run("true") == ShellResult("true", 0, b"", b"")


def test_stdin_is_empty(guest: LocalGuest) -> None:
    assert guest.shell.run("cat; wc -c").stdout.split() == [b"0"]


def test_quoting(guest: LocalGuest) -> None:
    for text in (
        "it's",
        'say "x"',
        "a\nb\n\nc",
        "$HOME `id` $(id)",
        "Grüße 日本 🐧",
        "back\\slash\\n",
        "*",
        "%s",
        "-n",
        "\t\r\x1b[",
    ):
        assert guest.shell.run(f"printf %s {shlex.quote(text)}").stdout == text.encode()


def test_several_lines_and_a_here_document(guest: LocalGuest) -> None:
    assert guest.shell.run("x=1\ncat <<'END'\n$x 'y'\nEND\necho $x\n").stdout == b"$x 'y'\n1\n"


def test_one_command_does_not_change_the_next(guest: LocalGuest, tmp_path: Path) -> None:
    guest.shell.run(f"cd {tmp_path}; x=5; export PATH=/nowhere; set -e; exec >/dev/null; false")
    assert guest.shell.run("echo ${x-unset}; ls -d /").stdout == b"unset\n/\n"


def test_names_that_are_not_utf_8(guest: LocalGuest, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9")
    guest.shell.write_file(name, b"content")
    assert (tmp_path / os.fsdecode(b"latin-\xe9")).read_bytes() == b"content"
    assert guest.shell.read_file(name) == b"content"


@quick
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), status=st.integers(0, 255))
def test_any_text_comes_back_as_it_was(sh: LocalGuest, text: str, status: int) -> None:
    done = sh.shell.run(f"printf %s {shlex.quote(text)}; printf %s {shlex.quote(text)} >&2; exit {status}")
    assert (done.stdout, done.stderr, done.status) == (text.encode(), text.encode(), status)


@quick
@given(command=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_no_command_line_breaks_the_protocol(sh: LocalGuest, command: str) -> None:
    # As an argument of a shell that only parses it: nothing that the text says is done.
    assert 0 <= sh.shell.run(f"sh -n -c {shlex.quote(command)}").status <= 255
    assert sh.shell.run("echo in step").stdout == b"in step\n"


def test_check(sh: LocalGuest) -> None:
    assert sh.shell.run("echo x").check().text == "x\n"
    with pytest.raises(ChannelError, match=r"'echo why >&2; exit 4' ended with 4: why"):
        sh.shell.run("echo why >&2; exit 4").check()


# -- files


@pytest.mark.parametrize("data", [b"", b"\n", EVERY_BYTE, b"exit 1\n", b"no newline", EVERY_BYTE * 20_480])
def test_a_file_there_and_back(guest: LocalGuest, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a file; with 'quotes'"
    guest.shell.write_file(str(path), data, mode=0o640)
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o7777 == 0o640
    assert guest.shell.read_file(str(path)) == data


@quick
@given(data=st.binary(max_size=2000))
def test_any_bytes_there_and_back(sh: LocalGuest, tmp_path: Path, data: bytes) -> None:
    sh.shell.write_file(str(tmp_path / "file"), data)
    assert sh.shell.read_file(str(tmp_path / "file")) == data


def test_a_file_that_cannot_be_read(guest: LocalGuest, tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="No such file"):
        guest.shell.read_file(str(tmp_path / "absent"))


def test_a_file_larger_than_asked_for(guest: LocalGuest, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 5000)
    with pytest.raises(ChannelError, match="wrote more than 4000 bytes"):
        guest.shell.read_file(str(tmp_path / "big"), max_size=4000)
    assert guest.shell.read_file(str(tmp_path / "big"), max_size=5000) == b"x" * 5000


@pytest.mark.parametrize("count", [1, 20_000])
def test_data_that_finds_no_file_is_not_run_as_commands(guest: LocalGuest, tmp_path: Path, count: int) -> None:
    evil = tmp_path / "evil"
    data = f"touch {evil}\n".encode() * count
    for path in (tmp_path / "absent" / "file", tmp_path):
        with pytest.raises(ChannelError, match=rf"{path.name} in the guest took \d+ of {len(data)} bytes"):
            guest.shell.write_file(str(path), data, mode=0o700)
    assert guest.shell.run("echo still here").stdout == b"still here\n"
    assert not evil.exists()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A limit on the size of files stands for it. The rest of the file is not run as commands either."""
    evil = tmp_path / "evil"
    data = f"touch {evil}\n".encode() * 20_000
    with LocalGuest(tmp_path / "run", ("sh", "-c", "ulimit -f 200; exec sh")) as guest:
        with pytest.raises(ChannelError, match=f"file in the guest took 102400 of {len(data)} bytes"):
            guest.shell.write_file(str(tmp_path / "file"), data)
        assert guest.shell.run("echo still here").stdout == b"still here\n"
    assert not evil.exists()


# -- what a guest may do wrong


def test_a_command_that_hangs(sh: LocalGuest) -> None:
    begun = time.monotonic()
    with pytest.raises(GuestTimeout, match=r"'echo \$\$; sleep 1000' did not end within 1 s"):
        sh.shell.run("echo $$; sleep 1000", timeout=0.4)
    assert time.monotonic() - begun < 8
    assert sh.shell.run("echo next").stdout == b"next\n"
    # The sleep went as well: of the session only the shell is left.
    wait_for(lambda: len([pid for pid in sh.session() if is_running(pid)]) == 1, "the hanging command is gone")


@pytest.mark.parametrize("where", ["", " >&2"])
def test_a_flood_is_cut_and_said(guest: LocalGuest, where: str) -> None:
    with pytest.raises(ChannelError, match="wrote more than 100000 bytes"):
        guest.shell.run(f"yes{where}", timeout=20, max_output=100_000)
    assert guest.shell.run("echo next").stdout == b"next\n"
    assert all(path.stat().st_size < 110_000 for path in guest.directory.iterdir())


def test_exactly_as_much_as_allowed(guest: LocalGuest) -> None:
    assert len(guest.shell.run("head -c 70000 /dev/zero", max_output=70_000).stdout) == 70_000
    with pytest.raises(ChannelError, match="wrote more than 70000 bytes"):
        guest.shell.run("head -c 70001 /dev/zero", max_output=70_000)


@pytest.mark.parametrize(
    "forged",
    [
        "printf 'OSG-%032d 0 0 0\\n' 0",
        "printf 'OSG-%032d-END\\n' 0; printf 'OSG-%032d-GO\\n' 0 >&2; printf 'OSG-%032d-HELLO\\n' 0",
        "for i in 1 2 3; do printf 'OSG- 0 0 0\\n\\nOSG--END\\n'; done",
    ],
)
def test_forged_markers_are_output_like_any_other(guest: LocalGuest, forged: str) -> None:
    done = guest.shell.run(f"{forged}; exit 9")
    assert done.status == 9
    assert done.stdout.startswith(b"OSG-")
    assert guest.shell.run("echo next").stdout == b"next\n"


def test_a_child_left_behind_does_not_speak_in_the_next_answer(guest: LocalGuest, tmp_path: Path) -> None:
    go, ended = tmp_path / "go", tmp_path / "ended"
    go.touch()
    guest.shell.run(f"(while [ -e {go} ]; do echo stray; echo stray >&2; done; touch {ended}) & echo first")
    for _ in range(5):
        assert guest.shell.run("echo second") == ShellResult("echo second", 0, b"second\n", b"")
    go.unlink()
    wait_for(ended.exists, "the child has ended")


def test_noise_between_requests(guest: LocalGuest) -> None:
    for noise in (
        b"\xff\x00 [  12.3] random: crng init done\n",
        b"OSG-",
        b"OSG-" + b"0" * 32 + b" 0 0 0\n",
        b"x" * 90_000,
    ):
        guest.write_noise(noise)
        assert guest.shell.run("echo answer").stdout == b"answer\n"


def test_a_shell_that_dies_is_reported_promptly_and_comes_back(guest: LocalGuest) -> None:
    failures: list[tuple[float, Exception]] = []

    def ask() -> None:
        try:
            guest.shell.run("sleep 1000", timeout=30)
        except ChannelError as error:
            failures.append((time.monotonic(), error))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: len(guest.session()) > 2, "the command runs")
    guest.kill()
    killed = time.monotonic()
    thread.join(10)
    ((at, error),) = failures
    assert "went away during a request" in str(error)
    assert at - killed < 1.0
    assert not guest.shell.is_open
    guest.boot()
    assert guest.shell.wait_open(0)
    assert guest.shell.run("echo again").stdout == b"again\n"


def test_a_shell_that_was_replaced_before_anyone_looked(sh: LocalGuest) -> None:
    """Closed and open again between two looks: the request belonged to the old shell."""
    failures: list[str] = []

    def ask() -> None:
        try:
            sh.shell.run("sleep 1000", timeout=30)
        except ChannelError as error:
            failures.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: len(sh.session()) > 2, "the command runs")
    sh.kill()
    sh.boot()
    thread.join(10)
    assert failures == ["the shell in the guest went away during a request"]
    assert sh.shell.run("echo again").stdout == b"again\n"


def test_a_shell_that_does_not_come_back(sh: LocalGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GRACE", 0.0)
    sh.kill()
    with pytest.raises(ChannelError, match="is gone and did not come back"):
        sh.shell.run("true", timeout=0.1)
    assert sh.asked > 0


def test_an_interrupted_request_does_not_answer_the_next(guest: LocalGuest) -> None:
    """Ctrl-C, or a fatal alarm, while a command runs: its late answer is not taken for another one's."""
    guest.died = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        guest.shell.run("sleep 0.2; head -c 3000000 /dev/zero")
    guest.died = None
    assert guest.shell.run("echo mine").stdout == b"mine\n"


def test_the_machine_s_end_is_reported_promptly(sh: LocalGuest) -> None:
    sh.died = MachineDied("QEMU was killed by signal 9")
    begun = time.monotonic()
    with pytest.raises(MachineDied, match="signal 9"):
        sh.shell.run("sleep 1000", timeout=60)
    assert time.monotonic() - begun < 2.0


def test_sockets_close_before_their_process_ends() -> None:
    """QEMU's own death is the host's fault, also when its socket was seen to close a moment earlier."""
    with ScriptedGuest(lambda kind, ident: None) as guest:
        looks = []

        def alive() -> None:
            looks.append(1)
            if len(looks) > 3:
                raise MachineDied("QEMU ended with status 1")

        guest.shell._alive = alive
        guest.theirs.shutdown(2)
        with pytest.raises(MachineDied):
            guest.shell.run("true")


def test_a_closed_port(sh: LocalGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "DYING", 0.0)
    sh._theirs.shutdown(2)
    with pytest.raises(ChannelError, match=r"the port to the guest (was closed|is gone)"):
        sh.shell.run("true")
    sh.shell.close()
    with pytest.raises(ChannelError, match="is gone"):
        sh.shell.run("true")


def answering(text: Callable[[str], bytes]) -> Callable[[str, str], bytes | None]:
    return lambda kind, ident: None if kind == "HELLO" else text(ident)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b" 0 1\n", "malformed"),
        (b" 0 1 2 3\n", "malformed"),
        (b" \n", "malformed"),
        (b" 0 -1 0\n", "malformed"),
        (b" 0 1e3 0\n", "malformed"),
        (b" 0 0x10 0\n", "malformed"),
        (" \u0661 \u0661 \u0661\n".encode(), "malformed"),
        (b" 0 \xb2 0\n", "malformed"),
        (b" 0 999999999999999 0\n", "announced 999999999999999 bytes where"),
        (b" 0 0 33558529\n", "announced 33558529 bytes"),
        (b" 0 9999999999999999999999999 0\n", "malformed"),
        (b" 256 0 0\nTRAILER", None),
        (b" 1000 0 0\nTRAILER", "answered the status"),
        (b" -1 0 0\nTRAILER", "answered the status"),
        (b" \x1b[31m 0 0\nTRAILER", "answered the status"),
        (b" 0 0 0\nOSG-00000000000000000000000000000000-END\n", "other bytes than it announced"),
        (b" 0 1 0\nTRAILER", "other bytes than it announced"),
        (b" late-137 0 0\nTRAILER", "did not end within"),
        (b" late-127 0 0\nTRAILER", r"no timeout\(1\)"),
    ],
)
def test_malformed_answers(header: bytes, complaint: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GRACE", 0.0)

    def answer(ident: str) -> bytes:
        name = ident.encode()
        return b"OSG-" + name + header.replace(b"TRAILER", b"OSG-" + name + b"-END\n") + b"\n" * 60

    with ScriptedGuest(answering(answer)) as guest:
        if complaint is None:
            assert guest.shell.run("true", timeout=1).status == 256
            return
        with pytest.raises((ChannelError, GuestTimeout), match=complaint):
            guest.shell.run("true", timeout=1)
        assert len(guest.shell._buffer) < 1000


def test_announced_sizes_are_not_believed() -> None:
    """A size within the bound, and nothing after it: no memory is taken beforehand, and it ends in time."""
    with ScriptedGuest(answering(lambda ident: f"OSG-{ident} 0 33554432 0\nabc".encode())) as guest:
        guest.died = MachineDied("so that nobody waits")
        with pytest.raises(MachineDied):
            guest.shell.run("true")
        assert bytes(guest.shell._buffer) == b"abc"


def test_endless_noise_for_an_answer() -> None:
    with (
        ScriptedGuest(answering(lambda ident: b"noise " * 400_000)) as guest,
        pytest.raises(ChannelError, match=r"sent \d+ bytes of noise"),
    ):
        guest.shell.run("true")


def test_endless_noise_before_the_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_OUTPUT", 1 << 20)
    with ScriptedGuest(lambda kind, ident: b"noise\n" * 700_000) as guest:
        with pytest.raises(ChannelError, match=r"sent \d+ bytes of noise"):
            guest.shell.run("true")
        assert len(guest.shell._buffer) < 1 << 19


def test_a_mute_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "GRACE", 0.2)
    with (
        ScriptedGuest(answering(lambda ident: b"")) as guest,
        pytest.raises(ChannelError, match="the shell in the guest does not answer"),
    ):
        guest.shell.run("true", timeout=0.1)


def test_a_guest_that_trickles_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that come often enough for no look at the clock to be due, and never make an answer."""
    monkeypatch.setattr(channel, "GRACE", 0.2)
    stop = threading.Event()
    with ScriptedGuest(answering(lambda ident: b"")) as guest:

        def trickle() -> None:
            while not stop.wait(0.02):
                guest.theirs.sendall(b".")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(ChannelError, match="is still answering"):
                guest.shell.run("true", timeout=0.1)
        finally:
            stop.set()
            thread.join()


def test_a_guest_that_takes_no_input() -> None:
    release = threading.Event()

    def stuck(kind: str, ident: str) -> bytes | None:
        if kind == "WRITE":
            guest.theirs.sendall(f"OSG-{ident}-GO\n".encode())
            release.wait(10)
        return None

    with ScriptedGuest(stuck) as guest:
        try:
            with pytest.raises(ChannelError, match="takes no input"):
                guest.shell.write_file("/file", bytes(8 << 20), timeout=0.3)
        finally:
            release.set()


def test_a_transfer_that_was_given_up_leaves_the_shell_usable(guest: LocalGuest, tmp_path: Path) -> None:
    """The guest still waits for the rest of the file: what comes next must not end up in it."""
    target, evil = tmp_path / "file", tmp_path / "evil"
    shell: Any = guest.shell
    write = shell._write

    def cut_off(data: bytes, deadline: float) -> None:
        if len(data) == 400_000:
            write(data[:1000], deadline)
            shell._owed = len(data) - 1000
            raise ChannelError("cut off")
        write(data, deadline)

    shell._write = cut_off
    with pytest.raises(ChannelError, match="cut off"):
        guest.shell.write_file(str(target), b"touch evil\n" * 36_363 + b"1234567")
    shell._write = write
    assert guest.shell.run("echo next", timeout=5).stdout == b"next\n"
    assert target.read_bytes() == (b"touch evil\n" * 100)[:1000] + b"\n" * 399_000
    assert not evil.exists()


# -- what the host may ask wrong


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("echo \0", "NUL"),
        ("echo \ud800", "cannot be encoded"),
        ("echo " + "x" * 131_072, "too long"),
        ("echo " + "é" * 65_536, "too long"),
    ],
)
def test_commands_that_cannot_be_run(sh: LocalGuest, command: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        sh.shell.run(command)
    assert sh.shell.run("echo next").stdout == b"next\n"


def test_the_longest_command(guest: LocalGuest) -> None:
    command = "echo " + "x" * (channel.MAX_COMMAND - 6)
    assert len(guest.shell.run(command).stdout) == channel.MAX_COMMAND - 5


def test_requests_of_several_threads_do_not_mix(sh: LocalGuest) -> None:
    answers: dict[int, list[bytes]] = {}

    def ask(number: int) -> None:
        answers[number] = [sh.shell.run(f"echo {number}").stdout for _ in range(4)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {number: [f"{number}\n".encode()] * 4 for number in range(3)}


# -- testinfra


def test_testinfra_asks_the_guest_and_never_this_machine(sh: LocalGuest, tmp_path: Path) -> None:
    host = guest_host(sh.shell, "guest")
    asked = sh.shell.requests
    assert host.run("printf %s; printf e >&2; exit 2", "it's").rc == 2
    done = host.run("printf '%%s' %s", "it's $x")
    assert (done.stdout, done.rc) == ("it's $x", 0)
    (tmp_path / "file").write_bytes(b"content")
    assert host.file(str(tmp_path / "file")).content == b"content"
    assert sh.shell.requests > asked + 2
    with pytest.raises(HostError, match="on this machine instead of the guest"):
        host.backend.run_local("id")


def test_who_waits_can_see_for_what(guest: LocalGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr(guest.shell, "_alive", lambda: seen.add(guest.shell.asking))
    before = time.monotonic()
    guest.shell.run("sleep 0.3 # \x1b[31mred")
    assert seen == {"sleep 0.3 # red"}
    assert guest.shell.asking_since >= before
    assert guest.shell.asking == ""
