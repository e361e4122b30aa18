"""Boots a machine and watches it: to its ready target, or to the first known failure."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pytest_osgates.checks.boot import AlarmSeen, BootObservation, KeyPress, Outcome
from pytest_osgates.observers import systemd
from pytest_osgates.profiles.schema import BootSection, KeyStep, LoginSection
from pytest_osgates.progress import ProgressLog, Step
from pytest_osgates.vm.errors import MORE_ROOM, GuestError, GuestFailed, HostError, OsgatesError, QmpFailed
from pytest_osgates.vm.guest.injection import Injection
from pytest_osgates.vm.guest.login import Credentials, start_channel
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.screen import Frame
from pytest_osgates.vm.text import strip_escapes

POLL_SECONDS = 0.5
# The journal says at once when a target is reached; asking costs the guest much more, and is for when it does not.
ASK_SECONDS = 10.0
SCREEN_SECONDS = 1.0
# A boot menu: nothing drawn and nothing read from CD or disk for this long, before any kernel has spoken.
STANDSTILL_SECONDS = 8.0
MENU_PIXELS = 200
MENU_READS = 20
# A login prompt on the serial console, and still no channel: systemd's credentials do not reach this guest.
LOGIN_AFTER_SECONDS = 20.0
CONSOLE_LINES = 400
# One may be a boot loader that found its entry (shim's fallback does it): judged, but waited for.
LOOP_RESETS = 3
EXPECTED_SECONDS = 60.0

_KERNEL = re.compile(r"Linux version \d|^\[ *\d+\.\d{6}\]|systemd\[1\]|^\[ {2}OK {2}\]|Loading, please wait")
_DEFAULT_KEYS = (
    KeyStep(keys=("ret",), why="the picture stands still, nothing is read and no kernel has spoken: a boot menu"),
)


@dataclass(frozen=True)
class Plan:
    """How one boot is to go. Seconds."""

    case: str
    boot: BootSection
    login: LoginSection | None
    deadline_s: float


@dataclass
class _Screen:
    """What the picture did so far."""

    digest: str = ""
    changed_at: float = 0.0
    text: str = ""
    reads: int = 0
    read_at: float = 0.0
    shots: dict[str, str] = field(default_factory=dict)
    first: str = ""
    drawn: int = 0
    last: Frame | None = None
    loader: Frame | None = None


class Boot:
    """One boot of one machine that has just been powered on."""

    def __init__(self, machine: Machine, plan: Plan, progress: ProgressLog) -> None:
        self.machine = machine
        self._plan = plan
        self._progress = progress
        self._screen = _Screen()
        self._keys: list[KeyPress] = []
        self._pending = list(_DEFAULT_KEYS if plan.boot.keys is None else plan.boot.keys)
        self._kernel_at: float | None = None
        self._prompt_at: float | None = None
        self._login_tried = False
        self._target = plan.boot.ready_target
        self._next_look = 0.0
        self._next_question = 0.0
        self._news = threading.Event()
        self._expected = EXPECTED_SECONDS * machine.host.pace
        self._facts: dict[str, object] = {}
        self.outcome = Outcome.TIMEOUT
        self.detail = ""
        machine.on_journal = self._on_journal

    # -- until it is ready ----------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Wait until ready, failed, ended, or the deadline; whether it is ready.

        :raise HostError: QEMU, swtpm or the monitor failed: no word about the guest.
        """
        try:
            ready_by = self._wait()
        except GuestFailed as error:
            self.outcome = Outcome.ENDED if self.machine.ended else Outcome.FAILED
            self.detail = error.what
            self._last_look()
            return False
        if not ready_by:
            self.detail = self._where()
            self._last_look()
            return False
        self.outcome = Outcome.READY
        at = self.machine.elapsed
        self._facts |= {"ready_s": round(at, 3), "ready_by": ready_by}
        if self.machine.spec.channel is not None:
            self._ask_times(at)
        self._shoot("ready")
        return True

    def _wait(self) -> str:
        machine, deadline = self.machine, self._plan.deadline_s
        while machine.elapsed < deadline:
            machine.check_guest()
            if machine.resets >= LOOP_RESETS:
                raise GuestFailed(f"the guest reset the machine {machine.resets} times before it was ready")
            if machine.elapsed >= self._next_look:
                self._look()
                self._next_look = machine.elapsed + SCREEN_SECONDS
            self._say()
            if machine.spec.channel is None:
                if self._shows_ready():
                    return self._shows_ready()
                machine.serial.wait_for_more(POLL_SECONDS)
            elif machine.shell.is_open:
                if (self._news.is_set() or machine.elapsed >= self._next_question) and self._target_reached():
                    return "channel"
                self._news.wait(POLL_SECONDS)
            else:
                self._log_in_if_needed()
                machine.shell.wait_open(POLL_SECONDS)
        return ""

    def _target_reached(self) -> bool:
        """Ask the guest. One that does not answer now is asked again, until the deadline."""
        shell = self.machine.shell
        self._news.clear()
        self._kernel_at = self._kernel_at or self.machine.elapsed
        try:
            if not self._target:
                self._target = systemd.default_target(shell)
            states = systemd.active_states(shell, self._target, "emergency.target", "rescue.target")
        except GuestError:
            self.machine.check_guest()
            return False
        finally:
            self._next_question = self.machine.elapsed + ASK_SECONDS
        for name in ("emergency.target", "rescue.target"):
            if states.get(name) == "active" and self._target != name:
                self.machine.watcher.raise_alarm("systemd-emergency", "channel", f"{name} is active", fatal=True)
                self.machine.check_guest()
        return states.get(self._target) == "active"

    def _on_journal(self, line: str) -> None:
        """From the journal's thread: a target was reached that decides something."""
        unit = systemd.reached_target(line)
        if unit is not None and (unit == self._target or unit in {"emergency.target", "rescue.target"}):
            self._news.set()

    def _shows_ready(self) -> str:
        """Which text source shows that the guest is ready; empty: none."""
        wanted = re.compile(self._plan.boot.ready_text, re.MULTILINE)
        if self._kernel_at is None:
            return ""
        if wanted.search(_last_lines(strip_escapes(self.machine.serial.tail()), 3)):
            return "serial"
        return "screen" if wanted.search(self._screen.text) else ""

    def _look(self) -> None:
        """Look at the screen: search it, keep what was special, answer a menu."""
        machine, screen = self.machine, self._screen
        frame = machine.screen.grab()
        now = machine.elapsed
        reads = machine.reads()
        if reads != screen.reads:
            screen.reads, screen.read_at = reads, now
        if frame.digest != screen.digest:
            if screen.last is None or not frame.nearly(screen.last):
                screen.changed_at = now
            screen.digest, screen.last = frame.digest, frame
            screen.drawn = frame.drawn() if machine.lit(frame) else 0
            screen.text = frame.text() if machine.lit(frame) else ""
            for line in screen.text.splitlines():
                machine.watcher.scan("screen", line)
            self._keep(frame)
        if self._kernel_at is None and self._kernel_spoke():
            self._kernel_at = now
        self._answer(now)

    def _keep(self, frame: Frame) -> None:
        screen = self._screen
        if not self.machine.lit(frame):
            return
        if not screen.first:
            screen.first = frame.digest
            self._store("firmware", frame)
        elif self._kernel_at is None and not self._kernel_spoke() and frame.digest != screen.first:
            screen.loader = frame

    def _kernel_spoke(self) -> bool:
        machine = self.machine
        if machine.spec.channel is not None and machine.shell.is_open:
            return True
        if machine.kernel_log is not None and machine.kernel_log.spoken:
            return True
        if machine.kernel_runs():
            return True
        texts = (self._screen.text, strip_escapes(machine.serial.tail(16384)))
        return any(_KERNEL.search(line.rstrip()) for text in texts for line in text.splitlines())

    def _answer(self, now: float) -> None:
        """Press what the profile says for boot menus, each step once."""
        if not self._pending or self._kernel_at is not None:
            return
        step, screen = self._pending[0], self._screen
        if step.text:
            due = re.search(step.text, screen.text, re.MULTILINE) is not None
        else:
            quiet_since = max(screen.changed_at, screen.read_at, self._keys[-1].at if self._keys else 0.0)
            # No menu: an all but empty screen (a quiet kernel), or a logo before anything was read (a firmware).
            due = (
                screen.drawn >= MENU_PIXELS and screen.reads >= MENU_READS and now - quiet_since >= STANDSTILL_SECONDS
            )
        if not due:
            return
        self._pending.pop(0)
        for key in step.keys:
            self.machine.send_keys(*key.split("-"))
        self._keys.append(KeyPress(at=round(now, 1), keys=" ".join(step.keys), why=step.why))
        self._shoot("menu")

    def _log_in_if_needed(self) -> None:
        machine, login = self.machine, self._plan.login
        if login is None or self._login_tried or machine.spec.channel is None:
            return
        if re.search(r"login: ?$", _last_lines(strip_escapes(machine.serial.tail()), 1)) is None:
            return
        self._prompt_at = self._prompt_at or machine.elapsed
        if machine.elapsed - self._prompt_at < LOGIN_AFTER_SECONDS:
            return
        self._login_tried = True
        start_channel(
            machine.serial,
            Credentials(login.user, login.password, login.become),
            Injection(machine.spec.channel),
            timeout=max(30.0, self._plan.deadline_s - machine.elapsed),
            alive=machine.check_guest,
        )

    # -- what it says of itself -----------------------------------------------------------------------------------

    def _ask_times(self, at: float) -> None:
        """Phases on one axis, power-on being zero: the guest's uptime tells when its kernel started."""
        try:
            uptime = systemd.uptime(self.machine.shell)
            asked = self.machine.elapsed
            stamps = systemd.timestamps(self.machine.shell, self._target)
        except GuestError as error:
            self.detail = error.what
            return
        kernel = asked - uptime
        self._facts["ready_guest_s"] = round(uptime - (asked - at), 3)
        phases = {"firmware and boot loader": round(kernel, 2)}
        phases |= {name: round(seconds, 2) for name, seconds in stamps.items()}
        self._facts["phases"] = phases

    def watch(self, seconds: float) -> None:
        """After ready: look for failures during `seconds` of the guest's own uptime.

        :raise HostError: QEMU or swtpm died.
        """
        machine = self.machine
        if machine.spec.channel is None or self.outcome is not Outcome.READY:
            return
        watched = 0.0
        try:
            start = systemd.uptime(machine.shell)
            limit = machine.elapsed + 3 * seconds + 60
            while watched < seconds and machine.elapsed < limit:
                # What the journal had to say was asked for; left set, the wait below would not wait.
                self._news.clear()
                machine.check_guest()
                self._look()
                self._progress.step(Step(self._plan.case, "watching after ready", watched, seconds, self._counts()))
                self._pause(min(5.0, max(0.5, seconds - watched)))
                watched = systemd.uptime(machine.shell) - start
            self._facts["failures"] = systemd.failures(machine.shell)
            self._facts["system_state"] = systemd.system_state(machine.shell)
            self._facts["units_asked"] = True
            if machine.spec.firmware.startswith("uefi"):
                self._facts["secure_boot"] = systemd.secure_boot(machine.shell)
        except GuestFailed as error:
            # It was ready, and did not stay so.
            self.outcome = Outcome.ENDED if machine.ended else Outcome.FAILED
            self.detail = error.what
            self._last_look()
        except GuestError as error:
            self.detail = error.what
        self._facts["watched_s"] = round(watched, 1)
        self._progress.step(Step(self._plan.case, "watched", watched, seconds, done=True))

    def _pause(self, seconds: float) -> None:
        """Wait for news, and look all the while whether the machine lives and shows nothing fatal: asking the guest
        costs it much, looking costs nothing."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._news.wait(min(POLL_SECONDS, left)):
            self.machine.check_guest()

    def _counts(self) -> dict[str, int]:
        machine = self.machine
        log = machine.kernel_log
        return {
            "serial bytes": machine.serial.spoken,
            "kernel log bytes": 0 if log is None else log.spoken,
            "known failures": len(machine.watcher.alarms),
        }

    def _say(self) -> None:
        stage = "firmware and boot loader" if self._kernel_at is None else f"waiting for {self._target or 'ready'}"
        self._progress.step(Step(self._plan.case, stage, self.machine.elapsed, self._expected, self._counts()))

    def _where(self) -> str:
        """How far a boot came that did not get ready."""
        if self._kernel_at is None:
            return "no kernel has spoken: it may be waiting in the firmware or in a boot menu"
        shell = None if self.machine.spec.channel is None else self.machine.shell
        if shell is not None and shell.is_open:
            try:
                return "waiting for: " + (systemd.jobs(shell) or "no job is queued")
            except GuestError as error:
                return error.what
        if shell is not None:
            return "the kernel runs, but the guest channel did not open: is its systemd 252 or newer?"
        return "the kernel runs, but nothing that says ready was shown"

    def _last_look(self) -> None:
        try:
            self._look()
            self._shoot("last")
        except OsgatesError as error:
            self._facts["last_look"] = str(error)

    def _shoot(self, name: str) -> None:
        try:
            self._store(name, self.machine.screen.grab())
        except (QmpFailed, GuestFailed) as error:
            self.detail = self.detail or f"no screenshot {name!r}: {error}"

    def _store(self, name: str, frame: Frame) -> None:
        path: Path = self.machine.records / f"screen-{name}.png"
        try:
            path.write_bytes(frame.png())
        except OSError as error:
            raise HostError(f"evidence cannot be written to {path}: {error.strerror}", remedy=MORE_ROOM) from error
        self._screen.shots[name] = f"machines/{self.machine.records.name}/{path.name}"

    def observation(self) -> BootObservation:
        """What was seen, so far."""
        machine, screen = self.machine, self._screen
        if screen.loader is not None and "boot loader" not in screen.shots:
            self._store("boot-loader", screen.loader)
            screen.shots["boot loader"] = screen.shots.pop("boot-loader")
        injection = None if machine.spec.channel is None else Injection(machine.spec.channel)
        console = {"serial": machine.serial.tail(1 << 16), "screen": screen.text}
        if machine.kernel_log is not None:
            console["kmsg"] = machine.kernel_log.tail(1 << 16)
        facts = {key: value for key, value in self._facts.items() if key != "last_look"}
        return BootObservation(
            case=self._plan.case,
            firmware=str(machine.spec.firmware),
            channel=machine.spec.channel is not None,
            accelerator=str(machine.host.accelerator.kind),
            outcome=self.outcome,
            detail=self.detail,
            ready_target=self._target or ("a login prompt" if machine.spec.channel is None else "default target"),
            deadline_s=self._plan.deadline_s,
            pace=machine.host.pace,
            alarms=tuple(
                AlarmSeen(name=a.name, source=a.source, line=a.line, at=round(a.at, 2), fatal=a.fatal)
                for a in machine.watcher.alarms
            ),
            console={
                name: tuple(line[:1000] for line in strip_escapes(text).splitlines()[-CONSOLE_LINES:])
                for name, text in console.items()
                if text
            },
            legible=bool(screen.text) or machine.serial.spoken > 0,
            resets=machine.resets,
            injected=() if injection is None else injection.units,
            keys=tuple(self._keys),
            screenshots=screen.shots,
            **facts,  # type: ignore[arg-type]
        )


def _last_lines(text: str, count: int) -> str:
    return "\n".join(text.rstrip("\r\n").splitlines()[-count:])
