"""Many runs of pytest for the price of one start: each is forked from a process that has imported everything.

What a row does to its own process (another root, no privileges, a file that changes at a certain moment) is Python
source that is run in the child before pytest begins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.conftest import Outcome
from tests.plugin.conftest import PROFILE, ROWS, SAMPLES

PATIENCE = 90.0

DRIVER = """
import json, os, sys, traceback
import pytest
import _pytest.terminal, _pytest.junitxml, _pytest.cacheprovider, _pytest.assertion.rewrite
from pytest_osgates import session
from pytest_osgates.fixtures import guest, image, states
from pytest_osgates.vm import host
import gate_samples

# Measured for each run in earnest; nothing is booted here.
host.measure_pace = lambda *_: 1.0

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.chdir(job["directory"])
            os.environ.update(job["env"])
            for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
                stream.flush()
                path = job["output"] + ("", "", ".err")[descriptor]
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
                os.dup2(file, descriptor)
                os.close(file)
            exec(job["inside"], {})
            status = int(pytest.main(job["arguments"]))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

# Root without its power to read and write everything, as anybody else is.
POWERLESS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
if libc.capset(header, (ctypes.c_uint32 * 6)()):
    raise OSError(ctypes.get_errno(), "capset")
"""

# A mount namespace of this process's own; an ordinary user becomes root in a user namespace for it.
_NAMESPACE = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
user, group = os.getuid(), os.getgid()
if libc.unshare(0x00020000 | (0x10000000 if user else 0)):
    raise OSError(ctypes.get_errno(), "unshare")
if user:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
mount("--make-rprivate", "/")
"""


def read_only(folder: str) -> str:
    """Source: what is in `folder` is on a read-only file system."""
    return f"{_NAMESPACE}\nmount('--bind', {folder!r}, {folder!r})\nmount('-o', 'remount,ro,bind', {folder!r})\n"


def small_disk(folder: str, kibibytes: int) -> str:
    """Source: `folder` is on a file system of its own, which is soon full."""
    return f"{_NAMESPACE}\nmount('-t', 'tmpfs', '-o', 'size={kibibytes}k', 'none', {folder!r})\n"


class Warm:
    """The process that forks."""

    def __init__(self, scratch: Path) -> None:
        (scratch / "tmp").mkdir(parents=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **environment,
                "PYTHONPATH": str(SAMPLES),
                "XDG_CACHE_HOME": str(scratch),
                "TMPDIR": str(scratch / "tmp"),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )

    def run(
        self, directory: Path, arguments: list[str], inside: str = "", env: Mapping[str, str] | None = None
    ) -> int:
        """Exit status of ``pytest ARGUMENTS`` in `directory`; it writes ``output`` and ``output.err`` there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "directory": str(directory),
            "output": str(directory / "output"),
            "arguments": ["-p", "no:hypothesispytest", *arguments],
            "inside": inside,
            "env": dict(env or {}),
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(PATIENCE)


class Place:
    """A directory with a profile, tests of two gates that observe nothing amiss, and an ISO."""

    def __init__(self, path: Path, iso: Path, warm: Warm) -> None:
        self.path = path
        self.whole = iso
        self.iso = path / "test.iso"
        self.iso.write_bytes(iso.read_bytes())
        self.warm = warm
        self.profile(PROFILE)
        self.tests()

    def profile(self, text: str | bytes) -> None:
        """Another profile."""
        (self.path / "bench.toml").write_bytes(text.encode() if isinstance(text, str) else text)

    def tests(self, extra: str = "") -> None:
        """The tests of all rows; `extra` may define another ``change``."""
        (self.path / "test_rows.py").write_text(ROWS.format(extra=extra))

    def run(self, *arguments: str, inside: str = "", evidence: str = "osgates-evidence") -> Outcome:
        """A run of the gates; no argument is added but the tests."""
        before = set((self.path / evidence).glob("*/*/verdicts.json"))
        status = self.warm.run(self.path, [*arguments, "test_rows.py"], inside)
        said = [(self.path / name).read_text(errors="surrogateescape") for name in ("output.err", "output")]
        outcome = Outcome(status, "".join(said))
        for path in set((self.path / evidence).glob("*/*/verdicts.json")) - before:
            outcome.root = path.parent
            outcome.verdicts = json.loads(path.read_text())
        return outcome

    def judge(self, *arguments: str, inside: str = "") -> Outcome:
        """A run on the ISO with the profile."""
        return self.run("--iso", "test.iso", "--iso-distro", "bench.toml", *arguments, inside=inside)
