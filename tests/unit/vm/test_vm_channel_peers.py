"""The framed shell and peers that answer anything: what it returns is right, or it is an error; and it always ends.

Nothing here waits: the socket is an object that answers, and time passes only while there is nothing to read.
"""

from __future__ import annotations

import re
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_osgates.vm.errors import ChannelError, GuestTimeout
from pytest_osgates.vm.guest import channel
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult

LIMIT = 4096
OTHER = "0123456789abcdef0123456789abcdef"


class Peer:
    """The guest's end, in place of a socket. For every request it plays the next of `plays`."""

    def __init__(self, plays: list[list[Any]], chunks: list[int]) -> None:
        self.now = 0.0
        self.calls = 0
        self.files: list[bytes] = []
        self.shell = GuestShell(cast("Any", self), "/run/x", lambda: None)
        self.shell.port_changed(True)
        self._plays = deque(plays)
        self._chunks = chunks
        self._input = b""
        self._wanted = 0
        self._owner: tuple[str, str] = ("", "")
        self._output: deque[bytes] = deque()
        self._said: list[bytes] = []
        self._count = 0
        self._closed = False

    # -- what a socket has

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def close(self) -> None:
        pass

    def send(self, data: memoryview) -> int:
        if self._closed:
            raise BrokenPipeError(32, "gone")
        self._input += bytes(data)
        self._read()
        return len(data)

    def recv(self, size: int) -> bytes:
        self.calls += 1
        assert self.calls < 20_000, "it goes on for ever"
        if not self._output:
            if self._closed:
                return b""
            self.now += self._timeout
            raise TimeoutError
        data = self._output.popleft()
        if len(data) > size:
            self._output.appendleft(data[size:])
        return data[:size]

    # -- what a guest does

    def _read(self) -> None:
        while self._input:
            if self._wanted:
                taken, self._input = self._input[: self._wanted], self._input[self._wanted :]
                self._wanted -= len(taken)
                self.files[-1] += taken
                if not self._wanted:
                    self._play("WRITE", self._owner[1])
                continue
            line, newline, rest = self._input.partition(b"\n")
            if not newline:
                return
            self._input = rest
            found = re.search(rb"\b[0-9a-f]{32}\b", line)
            if found is None:
                continue
            ident = found[0].decode()
            if b"-HELLO" in line:
                self._play("HELLO", ident)
            elif size := re.search(rb"head -c (\d+) \| ", line):
                self._play("GO", ident)
                self.files.append(b"")
                self._owner, self._wanted = ("WRITE", ident), int(size[1])
                if not self._wanted:
                    self._play("WRITE", ident)
            else:
                self._play("RUN", ident)

    def truth(self, kind: str, ident: str) -> bytes:
        """What an honest guest says."""
        if kind == "HELLO":
            return f"\nOSG-{ident}-HELLO\n".encode()
        if kind == "GO":
            return f"OSG-{ident}-GO\n".encode()
        if kind == "WRITE":
            return f"OSG-{ident} 0 {len(self.files[-1])}\nOSG-{ident}-END\n".encode()
        out, err = outputs(ident)
        return f"OSG-{ident} 7 {len(out)} {len(err)}\n".encode() + out + err + f"OSG-{ident}-END\n".encode()

    def _play(self, kind: str, ident: str) -> None:
        truth = self.truth(kind, ident)
        for what in self._plays.popleft() if self._plays else ["truth"]:
            match what:
                case "truth" | "twice":
                    self._say(truth * (2 if what == "twice" else 1))
                case "old" if self._said:
                    self._say(self._said[-1])
                case "forged":
                    self._say(self.truth("RUN", OTHER) + f"OSG-{OTHER}-GO\nOSG-{OTHER}-HELLO\n".encode())
                case "reborn":
                    self.shell.port_changed(False)
                    self.shell.port_changed(True)
                case "closed":
                    self._closed = True
                case ("cut", fraction):
                    self._say(truth[: int(fraction * len(truth))])
                case ("gap" | "doubled" as how, fraction, size):
                    # Behind the header: a status that reaches the host is believed.
                    start = truth.index(b"\n", 1) + 1
                    at = start + int(fraction * (len(truth) - start))
                    self._say(
                        truth[: at + (size if how == "doubled" else 0)] + truth[at + (size if how == "gap" else 0) :]
                    )
                case ("noise", data):
                    self._say(data)
                case ("header", words):
                    self._say(f"OSG-{ident} {words}\n".encode())
        self._said.append(truth)

    def _say(self, data: bytes) -> None:
        while data:
            size = self._chunks[self._count % len(self._chunks)]
            self._count += 1
            self._output.append(data[:size])
            data = data[size:]


def outputs(ident: str) -> tuple[bytes, bytes]:
    """What the command of this request wrote: another's is never the same; and it holds markers of its own."""
    forged = f"OSG-{ident}-END\nOSG-{OTHER} 0 1 1\nxOSG-{OTHER}-END\n".encode()
    return forged[: int(ident[0], 16) * 4] + ident.encode(), ident[::-1].encode() * (int(ident[1], 16) % 3)


# A header in the request's own name is the guest's word; the ones here contradict what follows them.
play = st.lists(
    st.one_of(
        st.sampled_from(["truth", "truth", "truth", "twice", "old", "forged", "old", "reborn", "closed"]),
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.tuples(st.sampled_from(["gap", "doubled"]), st.floats(0, 1), st.integers(1, 40)),
        st.tuples(st.just("noise"), st.binary(max_size=40)),
        st.tuples(st.just("noise"), st.sampled_from([b"OSG-", b"OSG- 0 0 0\n", b"-END\n", b"x" * 5000, b"\xff\0"])),
        st.tuples(st.just("header"), st.sampled_from(["", "0", "0 1", "0 -1 0", "0 99999 0", "x" * 300, "0 1e9 0"])),
    ),
    max_size=4,
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    plays=st.lists(play, max_size=8),
    chunks=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    requests=st.lists(st.one_of(st.just("run"), st.binary(max_size=60)), min_size=1, max_size=5),
)
def test_whatever_a_peer_answers(
    monkeypatch: pytest.MonkeyPatch, plays: list[list[Any]], chunks: list[int], requests: list[str | bytes]
) -> None:
    peer = Peer(plays, chunks)
    asked: list[str] = []
    fresh = channel.secrets.token_hex

    def ident() -> str:
        asked.append(fresh(16))
        return asked[-1]

    with monkeypatch.context() as patch:
        patch.setattr(channel, "_ident", ident)
        patch.setattr(channel, "time", SimpleNamespace(monotonic=lambda: peer.now))
        patch.setattr(channel, "DYING", 0.0)
        patch.setattr(channel, "NOISE_LIMIT", 1 << 14)
        for request in requests:
            begun, mark = peer.now, len(asked)
            try:
                if isinstance(request, bytes):
                    peer.shell.write_file("/run/x/file", request, timeout=30.0)
                    assert peer.files[-1] == request
                else:
                    done = peer.shell.run(request, timeout=10.0, max_output=LIMIT)
                    # The request's own identifier comes before the greeting's, if there was one.
                    assert done == ShellResult("run", 7, *outputs(asked[mark]))
            except (ChannelError, GuestTimeout):
                pass
            assert peer.now - begun <= 30.0 + 2 * channel.LOOK
            assert len(peer.shell._buffer) <= (1 << 14) + (1 << 18)
        if not peer._closed:
            # A peer that turns honest is understood, at the latest after one request that was lost.
            peer._plays.clear()
            for attempt in range(2):
                mark = len(asked)
                try:
                    assert peer.shell.run("run", timeout=10.0).stdout == outputs(asked[mark])[0]
                    break
                except (ChannelError, GuestTimeout):
                    assert attempt == 0


def test_an_honest_peer_in_single_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer([], [1])
    monkeypatch.setattr(channel, "time", SimpleNamespace(monotonic=lambda: peer.now))
    assert peer.shell.run("run").status == 7
    peer.shell.write_file("/run/x/file", b"OSG-\n\0" * 50)
    assert peer.files == [b"OSG-\n\0" * 50]
    assert peer.now == 0.0
