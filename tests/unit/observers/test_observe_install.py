"""Recipes that are gone through, fail, hang, or lose their machine; and where the installed disk comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates import installed
from pytest_osgates.checks.install import FirstBoot, InstallObservation, InstallOutcome
from pytest_osgates.observers import install, install_talk
from pytest_osgates.observers.install_work import Site
from pytest_osgates.profiles.schema import BootSection, InstallSection, InstallStep
from pytest_osgates.vm import dialogue as dialogue_module
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import GuestFailed, HostError, MachineDied, MissingTool, UsageError
from pytest_osgates.vm.guest.channel import ShellResult
from pytest_osgates.vm.home import Home

ACCELERATOR = "tcg"


class FakeShell:
    """A live system whose script writes `lines`, one each time it is asked, and then ends with `status`."""

    directory = "/run/osgates-x"

    def __init__(self, lines: list[bytes], status: str | None) -> None:
        self.lines, self.status = lines, status
        self.log = b""
        self.files: dict[str, bytes] = {}

    def write_file(self, path: str, data: bytes, **_: Any) -> None:
        self.files[path] = data

    def read_file(self, path: str, **_: Any) -> bytes:
        return b"log of " + path.encode()

    def run(self, command: str, **_: Any) -> ShellResult:
        if command.startswith("cat ") and "install.status" in command:
            if self.lines:
                self.log += self.lines.pop(0)
                return ShellResult(command, 1, b"", b"")
            return ShellResult(command, 1 if self.status is None else 0, (self.status or "").encode() + b"\n", b"")
        if match := re.match(r"tail -c \+(\d+)", command):
            return ShellResult(command, 0, self.log[int(match[1]) - 1 :][: install.PIECE], b"")
        return ShellResult(command, 0, b"", b"")


class FakeMachine:
    """A machine whose time passes by itself; `says`: what the serial console shows, by the second."""

    watcher = SimpleNamespace(fatal=None, alarms=())

    def __init__(
        self,
        shell: FakeShell | None = None,
        says: dict[float, str] | None = None,
        ends: str = "",
        ends_at: float = 1e9,
    ) -> None:
        self.shell = shell
        self.says, self.ends, self.ends_at = says or {}, ends, ends_at
        self.now = 0.0
        self.resets = 0
        self.ended: str | None = None
        self.typed: list[str] = []
        self.pressed: list[tuple[str, ...]] = []
        self.taken = 0
        self.picture = ""
        self.serial = self
        self.dropped, self.closed = 0, False
        # How often its power button is pressed for nothing.
        self.deaf, self.pressed_power = 0, 0

    @property
    def elapsed(self) -> float:
        self.now += 1.0
        return self.now

    def __enter__(self) -> FakeMachine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def check_guest(self) -> None:
        if self.now >= self.ends_at:
            if self.ends == "died":
                raise MachineDied("QEMU was killed")
            if self.ends == "reset":
                self.resets = 1
                return
            self.ended = self.ends
            raise GuestFailed("the machine was powered off by its guest")

    def writes(self) -> int:
        return 0

    def power_off(self, timeout: float) -> bool:
        self.pressed_power += 1
        return self.pressed_power > self.deaf

    # -- console

    def text(self) -> str:
        return "".join(text for at, text in sorted(self.says.items()) if at <= self.now)

    def tail(self, limit: int = 4096) -> str:
        return self.text()[-limit:]

    @property
    def spoken(self) -> int:
        return len(self.text())

    def take_unread(self, size: int, timeout: float) -> bytes:
        self.now += timeout
        data = self.text()[self.taken :]
        self.taken += len(data)
        return data.encode()

    def send(self, data: bytes) -> None:
        self.typed.append(data.decode())

    # -- screen

    @property
    def screen(self) -> Any:
        frame = SimpleNamespace(digest=self.picture, text=lambda: self.picture, png=lambda: b"png")
        return SimpleNamespace(grab=lambda: frame)

    def lit(self, frame: Any) -> bool:
        return True

    def send_keys(self, *keys: str) -> None:
        self.pressed.append(keys)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a site whose machine is the given one, ready at once; what the disk comes to is not tried."""

    def made(section: InstallSection, machine: FakeMachine, *, ready: bool = True) -> tuple[Site, Home]:
        boot = SimpleNamespace(run=lambda: ready, outcome="timeout", detail="waiting")
        monkeypatch.setattr(install, "Machine", lambda *_: machine)
        monkeypatch.setattr(install_talk, "Machine", lambda *_: machine)
        monkeypatch.setattr(install, "Boot", lambda *_: boot)
        monkeypatch.setattr(install, "_starts", lambda *_: ("started", ""))
        monkeypatch.setattr(install, "ASK_SECONDS", 0.0)
        monkeypatch.setattr(install_talk, "LOOK_SECONDS", 0.0)
        # The time of these machines is not the host's.
        monkeypatch.setattr(dialogue_module, "SETTLED", 0.0)
        records = tmp_path / "records"
        records.mkdir()
        section_machine = SimpleNamespace(memory_mib=512, cpus=1, cpu_model=None, tpm=False)
        return (
            Site(
                section=section,
                machine=cast("Any", section_machine),
                firmware=cast("Any", "uefi"),
                iso=tmp_path / "x.iso",
                host=cast("Any", SimpleNamespace(pace=1.0, accelerator=SimpleNamespace(kind=ACCELERATOR))),
                boot=cast("Any", None),
                login=None,
                progress=cast("Any", SimpleNamespace(step=lambda step: None)),
                records=lambda name: records,
                live_deadline_s=60.0,
            ),
            Home.at(tmp_path / "home"),
        )

    return made


def script(**keys: Any) -> InstallSection:
    return InstallSection(**{"script": "installer --yes", "stall_s": 30, **keys})


def done(made: Any, section: InstallSection, machine: FakeMachine, **more: Any) -> InstallObservation:
    place, home = made(section, machine, **more)
    seen = install.install(place, home)
    assert home.disk.exists() is (seen.outcome is InstallOutcome.DONE)
    return seen


def test_a_script_that_ends_well(site: Any, tmp_path: Path) -> None:
    shell = FakeShell([b"partitioning\n", b"copying\n"], "0")
    seen = done(site, script(logs=("/var/log/installer",)), FakeMachine(shell))
    assert (seen.outcome, seen.steps, seen.wanted_steps) == (InstallOutcome.DONE, 1, 1)
    assert seen.log == ("partitioning", "copying")
    assert shell.files["/run/osgates-x/install.sh"] == b"installer --yes"
    assert (tmp_path / "records/installer.log").read_bytes() == b"partitioning\ncopying\n"
    assert (tmp_path / "records/log-0.txt").read_bytes() == b"log of /var/log/installer"
    assert (tmp_path / "records/screen-last.png").exists()
    # Nothing was written in this test: an empty disk starts nothing.
    assert seen.left == ()


@pytest.mark.parametrize(
    ("shell", "keys", "outcome", "detail"),
    [
        (FakeShell([b"no space left\n"], "3"), {}, InstallOutcome.FAILED, "the script ended with 3: no space left"),
        (FakeShell([], None), {}, InstallOutcome.STALLED, "nothing was written, shown or said"),
        (FakeShell([b"FATAL: x\n"], None), {"failed": ("FATAL: .*",)}, InstallOutcome.FAILED, "FATAL: x"),
        (FakeShell([b"x\n"] * 500, None), {"deadline_s": 100}, InstallOutcome.TIMEOUT, "not done after"),
    ],
)
def test_a_script_that_does_not(
    shell: FakeShell, keys: dict[str, Any], outcome: InstallOutcome, detail: str, site: Any, tmp_path: Path
) -> None:
    seen = done(site, script(**keys), FakeMachine(shell))
    assert (seen.outcome, seen.steps) == (outcome, 0)
    assert detail in seen.detail
    assert (tmp_path / "records/screen-last.png").exists()


def log_of(*pieces: bytes) -> FakeShell:
    return FakeShell(list(pieces), "0")


@pytest.mark.parametrize(
    ("shell", "detail"),
    [
        # It says so, and then ends as if nothing had been, before it is asked again.
        (log_of(b"copying\nFATAL: no space\ndone\n"), "FATAL: no space"),
        (log_of(b"FATAL: first\n" + b"x" * 60 + b"\n", b"later\n" * 200_000), "FATAL: first"),
        # Much more follows than is shown, or was kept of the log.
        (log_of(b"FATAL: early\n" + b"later\n" * 100_000), "FATAL: early"),
        (log_of(b"y" * install.PIECE, b"\nFATAL: after a piece\n"), "FATAL: after a piece"),
        (log_of(b"y" * (install.PIECE - 4) + b"\nFAT", b"AL: cut in two\n"), "FATAL: cut in two"),
        (log_of(b"copying\nFATAL: without an end"), "FATAL: without an end"),
        (log_of(b"50%\r60%\rFATAL: over it\r"), "FATAL: over it"),
        (log_of(b"\x1b[1", b"mFATAL: bold\x1b[0m\n"), "FATAL: bold"),
    ],
)
def test_a_script_that_says_it_failed_and_ends_well(shell: FakeShell, detail: str, site: Any) -> None:
    seen = done(site, script(failed=("^FATAL: .*",)), FakeMachine(shell))
    assert (seen.outcome, seen.detail) == (InstallOutcome.FAILED, detail)


def test_a_log_is_searched_beyond_what_is_kept(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_MOST_LOG", 100)
    shell = log_of(b"x\n" * 100, b"y\n" * 100, b"FATAL: late\n")
    assert done(site, script(failed=("^FATAL",)), FakeMachine(shell)).outcome is InstallOutcome.FAILED
    assert (tmp_path / "records/installer.log").stat().st_size == 100


def test_an_unfinished_line_does_not_say_yet_that_it_failed(site: Any) -> None:
    shell = log_of(b"FATAL", b" errors: none\n")
    assert done(site, script(failed=("^FATAL$",)), FakeMachine(shell)).outcome is InstallOutcome.DONE


@given(st.lists(st.integers(1, 40), max_size=6))
def test_a_failure_is_found_however_the_log_is_cut(sizes: list[int]) -> None:
    site = SimpleNamespace(section=script(failed=("^FATAL: x$",)))
    worker = install._Script(cast("Any", site), Path("/nonexistent"))
    worker.keep = lambda *_, **__: None  # type: ignore[method-assign]
    log = b"no FATAL: x\r\ncopying\r\n\x1b[31mFATAL: x\x1b[0m\r\ncopying\n"
    shell = FakeShell([], None)

    def taken() -> None:
        for size in (*sizes, len(log)):
            shell.log = log[: len(shell.log) + size]
            worker._take(cast("Any", shell))

    with pytest.raises(install.Over, match="FATAL: x"):
        taken()


def test_a_live_system_that_is_not_ready(site: Any) -> None:
    seen = done(site, script(), FakeMachine(FakeShell([], "0")), ready=False)
    assert (seen.outcome, seen.detail) == (InstallOutcome.FAILED, "the live system: timeout: waiting")


def test_a_machine_of_ours_that_dies_is_no_installers_fault(site: Any) -> None:
    place, home = site(script(), FakeMachine(FakeShell([], None), ends="died", ends_at=5.0))
    with pytest.raises(MachineDied):
        install.install(place, home)


def test_a_machine_that_goes_away_under_its_script(site: Any) -> None:
    machine = FakeMachine(FakeShell([], None), ends="guest-shutdown", ends_at=5.0)
    assert done(site, script(), machine).outcome is InstallOutcome.ENDED


STEPS = (
    InstallStep(expect="Disk to use", send="vda"),
    InstallStep(expect="Passphrase:", send="secret"),
)
SAYS = {1.0: "Welcome\r\nDisk to use? ", 6.0: "vda\r\nPassphrase: ", 12.0: "\r\ncopying\r\n"}


def dialogue(**keys: Any) -> InstallSection:
    return InstallSection(**{"dialogue": STEPS, "stall_s": 40, "deadline_s": 400, **keys})


def test_a_dialogue_that_ends_with_the_machine_off(site: Any, tmp_path: Path) -> None:
    machine = FakeMachine(says=SAYS, ends="guest-shutdown", ends_at=30.0)
    seen = done(site, dialogue(), machine)
    assert (seen.outcome, seen.steps) == (InstallOutcome.DONE, 2)
    assert machine.typed == ["vda\r", "secret\r"]
    assert (tmp_path / "records/screen-step-2.png").exists()


@pytest.mark.parametrize(
    ("keys", "machine", "outcome", "steps"),
    [
        (
            {"done": "All done", "ends": "text"},
            FakeMachine(says={**SAYS, 20.0: "All done\r\n"}),
            InstallOutcome.DONE,
            2,
        ),
        ({"ends": "reboot"}, FakeMachine(says=SAYS, ends="reset", ends_at=30.0), InstallOutcome.DONE, 2),
        ({}, FakeMachine(says=SAYS), InstallOutcome.STALLED, 2),
        ({}, FakeMachine(says={1.0: "Disk to use? "}), InstallOutcome.STALLED, 1),
        ({"failed": ("cannot copy",)}, FakeMachine(says={**SAYS, 15.0: "cannot copy\r\n"}), InstallOutcome.FAILED, 2),
        ({}, FakeMachine(says={1.0: "Disk to use? "}, ends="guest-shutdown", ends_at=9.0), InstallOutcome.ENDED, 1),
        ({}, FakeMachine(says=SAYS, ends="guest-panic", ends_at=30.0), InstallOutcome.ENDED, 2),
        ({}, FakeMachine(says=SAYS, ends="reset", ends_at=30.0), InstallOutcome.ENDED, 2),
    ],
)
def test_each_end_of_a_dialogue(
    keys: dict[str, Any], machine: FakeMachine, outcome: InstallOutcome, steps: int, site: Any
) -> None:
    seen = done(site, dialogue(**keys), machine)
    assert (seen.outcome, seen.steps) == (outcome, steps), seen.detail


@pytest.mark.parametrize("end", ["off", "reboot", "text"])
def test_a_dialogue_whose_last_word_is_that_it_failed(end: str, site: Any) -> None:
    """Without a newline, in the moment in which the machine goes; or before something was typed."""
    keys: dict[str, Any] = {"failed": ("cannot copy",), "ends": end}
    if end == "text":
        keys["done"] = "All done"
    ends = {"off": "guest-shutdown", "reboot": "reset", "text": ""}[end]
    says = {**SAYS, 29.0: "\r\nAll done\r\ncannot copy"}
    machine = FakeMachine(says=says, ends=ends, ends_at=29.0)
    seen = done(site, dialogue(**keys), machine)
    assert (seen.outcome, seen.detail) == (InstallOutcome.FAILED, "cannot copy")


def test_a_console_too_fast_to_be_read_is_said(site: Any) -> None:
    machine = FakeMachine(says=SAYS, ends="guest-shutdown", ends_at=30.0)
    machine.dropped = 5
    assert done(site, dialogue(), machine).lost == 5


class StartedMachine(FakeMachine):
    """A machine that starts from its disk; its kernel runs from the beginning."""

    spec = SimpleNamespace(channel=None)
    host = SimpleNamespace(pace=1.0)
    kernel_log = None
    watcher = SimpleNamespace(alarms=(), scan=lambda *_: None)
    on_journal = None

    def reads(self) -> int:
        return 0

    def kernel_runs(self) -> bool:
        return True

    def wait_for_more(self, timeout: float) -> None: ...

    @property
    def screen(self) -> Any:
        frame = SimpleNamespace(
            digest=self.picture, text=lambda: self.picture, png=lambda: b"png", drawn=lambda: 0, nearly=lambda _: True
        )
        return SimpleNamespace(grab=lambda: frame)


@pytest.mark.parametrize(
    ("says", "picture", "ends_at", "came", "detail"),
    [
        ({5.0: "\r\nhost login: "}, "", 1e9, "started", "ready, on the serial"),
        ({5.0: "\r\nPlease enter passphrase for disk root (x): "}, "", 1e9, "started", "a prompt, on the serial"),
        ({}, "Please unlock disk sda3_crypt:", 1e9, "started", "a prompt, on the screen"),
        # A kernel that spoke and panics, or says nothing more.
        ({2.0: "Linux version 6.12\r\n"}, "", 9.0, "ended", "powered off"),
        ({2.0: "Linux version 6.12\r\n"}, "", 1e9, "silent", "nothing that says ready"),
    ],
)
def test_what_the_disk_comes_to(
    says: dict[float, str],
    picture: str,
    ends_at: float,
    came: str,
    detail: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = StartedMachine(says=says, ends="guest-shutdown", ends_at=ends_at)
    machine.picture, machine.records = picture, tmp_path  # type: ignore[attr-defined]
    given_patterns: list[Any] = []

    def made(*arguments: Any) -> StartedMachine:
        given_patterns.extend(arguments[3])
        return machine

    monkeypatch.setattr(install, "Machine", made)
    place = SimpleNamespace(
        machine=SimpleNamespace(memory_mib=512, cpus=1, cpu_model=None, tpm=False),
        firmware="uefi",
        iso=tmp_path / "x.iso",
        boot=BootSection(),
        host=SimpleNamespace(accelerator=SimpleNamespace(kind="kvm")),
        progress=SimpleNamespace(step=lambda step: None),
        records=lambda name: tmp_path,
        live_deadline_s=60.0,
    )
    found = install._starts(cast("Any", place), Home.at(tmp_path / "home"))
    assert found[0] == came
    assert detail in found[1]
    assert "kernel-panic" in {pattern.name for pattern in given_patterns if pattern.fatal}


@pytest.fixture
def no_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of these tests are text."""

    class Reader:
        def glance(self, frame: Any) -> Any:
            return None if frame.text().startswith("drawn: ") else SimpleNamespace(exact=True)

        def read(self, frame: Any) -> Any:
            return SimpleNamespace(exact=False, lines=(frame.text().removeprefix("drawn: "),))

    monkeypatch.setattr(install_talk, "need", lambda: None)
    monkeypatch.setattr(install_talk, "Reader", Reader)


@pytest.mark.usefixtures("no_ocr")
@pytest.mark.parametrize("picture", ["Install now?", "drawn: Install now?"])
def test_a_dialogue_with_the_screen(picture: str, site: Any) -> None:
    step = InstallStep(expect="^Install now", screen=True, send="Ab", keys=("tab", "alt-f4"))
    machine = FakeMachine(ends="guest-shutdown", ends_at=30.0)
    machine.picture = picture
    seen = done(site, InstallSection(dialogue=(step,), stall_s=60), machine)
    assert seen.outcome is InstallOutcome.DONE
    assert machine.pressed == [("shift", "a"), ("b",), ("tab",), ("alt", "f4")]


def test_a_screen_that_nothing_here_can_read(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is booted."""

    def lacking() -> None:
        raise MissingTool("tesseract is not installed")

    monkeypatch.setattr(install_talk, "need", lacking)
    place, home = site(InstallSection(dialogue=STEPS, done="Done", done_on_screen=True, ends="text"), FakeMachine())
    monkeypatch.setattr(install_talk, "Machine", None)
    with pytest.raises(MissingTool):
        install.install(place, home)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "a script or a dialogue"),
        ({"script": "x", "dialogue": STEPS}, "a script or a dialogue"),
        ({"script": "x", "ends": "reboot"}, "are for a dialogue"),
        ({"dialogue": STEPS, "ends": "text"}, "belong together"),
        ({"dialogue": STEPS, "done": "x"}, "belong together"),
        ({"script": "x", "failed": (".*",)}, "fits anything"),
        ({"script": "x", "stall_s": float("inf")}, "finite"),
        ({"dialogue": ({"expect": "x"},)}, "send or keys"),
        ({"dialogue": ({"expect": "x", "keys": ("ret",)},)}, "screen = true"),
        ({"dialogue": ({"expect": "", "send": "x"},)}, "waits for nothing"),
    ],
)
def test_recipes_that_contradict_themselves(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        InstallSection(**keys)


# -- once for all


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    @contextmanager
    def unlocked(*_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(workdir, "base_directory", lambda: tmp_path)
    monkeypatch.setattr(installed, "deadline", lambda run: 60.0)
    profile = SimpleNamespace(
        install=script(), machine=SimpleNamespace(firmware=("uefi",)), boot=None, login=None, gates={}
    )
    yield SimpleNamespace(
        disk=None,
        run_id="R1",
        profile=profile,
        host=SimpleNamespace(pace=1.0),
        request=SimpleNamespace(iso=tmp_path / "x.iso"),
        progress=None,
        evidence=SimpleNamespace(machine=lambda name: tmp_path),
    )
    installed.forget("R1")
    assert not installed.place("R1").exists()


def test_a_disk_is_installed_once_for_all(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(site: Site, home: Home) -> InstallObservation:
        calls.append(site)
        home.directory.mkdir()
        home.disk.write_bytes(b"disk")
        return InstallObservation(way="script", outcome=InstallOutcome.DONE)

    monkeypatch.setattr(install, "install", fake)
    first = installed.disk(run)
    run.disk = None
    assert installed.disk(run).sha256 == first.sha256
    assert len(calls) == 1


def test_a_failed_installation_is_not_tried_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(site: Site, home: Home) -> InstallObservation:
        calls.append(site)
        return InstallObservation(
            way="script", outcome=InstallOutcome.STALLED, detail="nothing", records="machines/x"
        )

    monkeypatch.setattr(install, "install", fake)
    for _ in range(2):
        with pytest.raises(UsageError, match="the installation stalled after 0 s: nothing"):
            installed.disk(run)
    assert len(calls) == 1


def test_a_host_that_fails_is_tried_twice_and_not_by_every_gate(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dies(site: Site, home: Home) -> InstallObservation:
        calls.append(site)
        raise MachineDied("QEMU was killed")

    monkeypatch.setattr(install, "install", dies)
    for said in ("^QEMU was killed", "^QEMU was killed", "failed 2 times .*: QEMU was killed", "failed 2 times"):
        with pytest.raises(HostError, match=said):
            installed.disk(run)
    assert len(calls) == 2


def test_a_host_that_failed_once_may_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(site: Site, home: Home) -> InstallObservation:
        raise MachineDied("QEMU was killed")

    def fake(site: Site, home: Home) -> InstallObservation:
        home.directory.mkdir()
        home.disk.write_bytes(b"disk")
        return InstallObservation(way="script", outcome=InstallOutcome.DONE)

    monkeypatch.setattr(install, "install", dies)
    with pytest.raises(MachineDied):
        installed.disk(run)
    monkeypatch.setattr(install, "install", fake)
    assert installed.disk(run).size == 4


def test_a_first_boot_that_failed_leaves_no_disk_for_anybody(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FirstBoot(outcome=InstallOutcome.STALLED, detail="it waits", seconds=7, records="machines/first")
    seen = InstallObservation(way="script", outcome=InstallOutcome.DONE, records="machines/x", first_boot=first)
    monkeypatch.setattr(install, "install", lambda site, home: seen)
    with pytest.raises(UsageError, match="its first boot stalled after 7 s: it waits") as caught:
        installed.disk(run)
    assert "machines/first" in caught.value.remedy


def test_without_disk_and_recipe_there_is_nothing(run: Any) -> None:
    run.profile.install = None
    with pytest.raises(UsageError, match="no disk with an installed system"):
        installed.disk(run)
