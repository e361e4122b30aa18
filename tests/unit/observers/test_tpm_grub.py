"""At GRUB's keyboard: a GRUB that behaves, one with a password, a hidden one, and hostile consoles."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_osgates.checks.tpm_grub import barred, edited
from pytest_osgates.checks.tpm_model import GrubSeen, Outcome
from pytest_osgates.data import load
from pytest_osgates.observers import tpm_grub
from pytest_osgates.observers.tpm_grub import type_at_grub
from pytest_osgates.vm.errors import GuestFailed, MachineDied, QmpFailed
from tests.unit.talk_samples import Clock
from tests.unit.tpm_samples import boot

PARAMETER = "osgates.tampered=1"
STARTS = b'\x1b[2J\x1b[01;01HBdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0)\r\n'
# Between the frames of an editor that is 30 characters wide.
WIDTH = 30
ENTRY = (
    "setparams 'OS Gates Demo 1'",
    "",
    "\tlinux /live/vmlinuz boot=live quiet console=ttyS0,115200",
    "\tinitrd /i",
)
KEYS = {"spc": " ", "dot": ".", "equal": "=", "minus": "-", "ret": "\n"}


@dataclass
class Grub:
    """A GRUB that is talked to by keys. `opens`: by which; `password`: wanted for the editor and the command line."""

    clock: Clock
    opens: tuple[str, ...] = ("f4",)
    nested: bool = False
    fedora: bool = False
    password: tuple[str, ...] = ()
    picture: bool = False
    deaf: str = ""
    entry: tuple[str, ...] = ENTRY
    kernel_after: float = 30.0
    first: bytes = STARTS
    records: Path = Path()
    state: str = "firmware"
    pressed: list[str] = field(default_factory=list)
    out: bytes = b""
    lines: list[str] = field(default_factory=list)
    line: int = 0
    at_end: bool = False
    command: str = ""
    lost: bytes = b""
    started: float = 0.0

    def __post_init__(self) -> None:
        self.out = self.first
        self.started = self.clock.now

    # -- the machine

    @property
    def serial(self) -> Grub:
        return self

    @property
    def screen(self) -> object:
        raise QmpFailed("no picture")

    def take_unread(self, size: int, timeout: float) -> bytes:
        if not self.out:
            self.clock.now += max(timeout, 0.01)
        data, self.out = self.out[:size], self.out[size:]
        return data

    def kernel_runs(self) -> bool:
        return self.state == "firmware" and self.clock.now - self.started > self.kernel_after

    def send_keys(self, *keys: str) -> None:
        key = "-".join(keys)
        self.pressed.append(key)
        if key == self.deaf:
            return
        getattr(self, f"_{self.state}")(key)

    # -- what it is in

    def _firmware(self, key: str) -> None:
        if key in self.opens:
            self._show_menu()

    def _menu(self, key: str) -> None:
        if key == "esc" and self.nested:
            self.state = "shell"
            self._write(b"\x1b[2J\x1b[01;01H   Minimal BASH-like line editing\n\rgrub> ")
        if key in ("e", "c"):
            what = {"e": "editor", "c": "shell"}[key]
            if what in self.password:
                self.state = "lock"
                self._write(b"\x1b[2J\x1b[01;01HEnter username: ")
            elif what == "shell":
                self.state, self.command = "shell", ""
                self._write(
                    b"\x1b[2J\x1b[02;35HGNU GRUB  version 2.12\n\r\n\r   Minimal BASH-like line editing\n\rgrub> "
                )
            else:
                self._show_editor()

    def _lock(self, key: str) -> None:
        if key == "esc":
            self._show_menu()

    def _shell(self, key: str) -> None:
        if key == "esc":
            self._show_menu()
        elif key == "ret":
            if self.command == "terminal output console":
                self.picture = False
            self.command = ""
            self._write(b"\n\rgrub> ")
        else:
            self.command += KEYS.get(key, " " if key == "shift-minus" else key)

    def _editor(self, key: str) -> None:
        if key == "down":
            self.line = min(len(self.lines) - 1, self.line + 1)
        elif key == "end":
            self.at_end = True
        elif key == "ctrl-x":
            self.state = "booted"
            self._write(b"\x1b[2J\x1b[01;01H  Booting a command list\n\r\n\r")
            return
        else:
            assert self.at_end
            self.lines[self.line] += KEYS.get(key, key)
        self._draw()

    def _booted(self, key: str) -> None:
        raise AssertionError(f"{key} is pressed once it boots")

    # -- what it shows

    def _write(self, data: bytes) -> None:
        if not self.picture:
            self.out += data

    def _show_menu(self) -> None:
        self.state = "menu"
        if self.fedora:
            self._write(
                b"\x1b[2J\x1b[05;03HFedora Linux (6.9)\x1b[26;02HUse the ^ and v keys to change the selection."
                b"\x1b[27;02HPress 'e' to edit the selected item, or 'c' for a command prompt."
            )
            return
        self._write(
            b"\x1b[2J\x1b[02;35HGNU GRUB  version 2.12\x1b[26;02H      Press enter to boot the selected OS, `e' to"
            b" edit the commands before booting or `c' for \n\r      a command-line.\x1b[05;03H*OS Gates Demo 1"
        )

    def _show_editor(self) -> None:
        self.state, self.lines, self.line, self.at_end = "editor", list(self.entry), 0, False
        frame = b"\x1b[2J\x1b[02;35HGNU GRUB  version 2.12\x1b[04;02H\xda" + b"\xc4" * (WIDTH + 1) + b"\xbf"
        frame += b"".join(b"\x1b[%02d;02H\xb3\x1b[%02d;%02dH\xb3" % (row, row, WIDTH + 4) for row in range(5, 20))
        if self.fedora:
            self._write(b"\x1b[2J\x1b[26;02HPress Ctrl-x to start, Ctrl-c for a command prompt or Escape to")
            self._draw()
            return
        self._write(frame + b"\x1b[26;02H     Minimum Emacs-like screen editing is supported. TAB lists completions.")
        self._draw()

    def _draw(self) -> None:
        row, cursor = 5, (5, 3)
        for number, line in enumerate(self.lines):
            text = line.replace("\t", " " * 8)
            pieces = [text[at : at + WIDTH] for at in range(0, len(text), WIDTH)] or [""]
            for place, piece in enumerate(pieces):
                wrapped = place < len(pieces) - 1
                self._write(b"\x1b[%02d;03H" % row + piece.ljust(WIDTH).encode() + (b"\\" if wrapped else b" "))
                if number == self.line and (place == 0 or self.at_end):
                    cursor = (row, 3 + (len(piece) if self.at_end else 0))
                row += 1
        self._write(b"\x1b[%02d;%02dH" % cursor)


Typist = Callable[..., GrubSeen]


@pytest.fixture
def typist(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Typist:
    monkeypatch.setattr(tpm_grub, "time", clock)

    def run(grub: Grub, alive: Callable[[], None] = lambda: None, seconds: float = 900.0) -> GrubSeen:
        end = clock.now + seconds
        return type_at_grub(grub, PARAMETER, alive, lambda: end - clock.now, 1.0)  # type: ignore[arg-type]

    return run


def test_an_entry_is_edited_and_booted(clock: Clock, typist: Typist) -> None:
    grub = Grub(clock)
    seen = typist(grub)
    assert seen.missed == ""
    assert edited(boot(grub=seen))
    assert grub.lines[2] == f"{ENTRY[2]} {PARAMETER}"
    assert seen.line == f"linux /live/vmlinuz boot=live quiet console=ttyS0,115200 {PARAMETER}"
    assert (seen.command_line, seen.booting) == ("grub>", "Booting a command list")
    assert seen.commands == ()
    assert grub.pressed[:3] == ["f4", "c", "esc"]
    assert grub.command == "", "PCR 8 would see it"


def test_each_key_that_may_open_the_menu_is_pressed(clock: Clock, typist: Typist) -> None:
    keys = load("grub_console")["keys"]
    for key in (*keys["open"], keys["last"]):
        assert edited(boot(grub=typist(Grub(clock, opens=(key,)))))


def test_a_menu_that_another_file_opened_is_not_left(clock: Clock, typist: Typist) -> None:
    """It shows by itself, while keys wait in the firmware's queue."""
    grub = Grub(clock, opens=("shift",), nested=True)
    seen = typist(grub)
    assert edited(boot(grub=seen))
    assert grub.pressed[:4] == ["f4", "shift", "c", "esc"]


def test_a_menu_that_escape_has_left(clock: Clock, typist: Typist) -> None:
    def pressed(key: str) -> None:
        Grub._firmware(grub, key)
        if grub.state == "menu":
            Grub._menu(grub, key)

    grub = Grub(clock, opens=("esc",), nested=True)
    grub._firmware = pressed  # type: ignore[method-assign]
    seen = typist(grub)
    assert seen.menu == ""
    assert seen.missed.startswith("GRUB's command line came instead of its menu; Escape was pressed")
    assert seen.commands == ()
    assert grub.pressed.count("esc") == 1


def test_a_password(clock: Clock, typist: Typist) -> None:
    grub = Grub(clock, password=("editor", "shell"))
    seen = typist(grub)
    assert barred(boot(outcome=Outcome.GRUB, grub=seen))
    assert seen.editor == "Enter username:"
    assert "ctrl-x" not in grub.pressed
    half = typist(Grub(clock, password=("editor",)))
    assert not barred(boot(outcome=Outcome.GRUB, grub=half))


def test_a_menu_that_does_not_come(clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, opens=()))
    assert (seen.menu, seen.missed) == ("", "a kernel runs, and GRUB's menu did not come")


def test_a_menu_behind_a_picture(clock: Clock, typist: Typist) -> None:
    grub = Grub(clock, picture=True, kernel_after=1e9)
    seen = typist(grub)
    assert edited(boot(grub=seen))
    assert seen.commands == ("terminal_output console",)
    deaf = typist(Grub(clock, picture=True, kernel_after=1e9, password=("shell",)))
    assert deaf.missed == "no menu on the serial console, and no command line behind a picture"


def test_a_password_before_the_menu(clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, first=STARTS + b"\x1b[2J\x1b[01;01HEnter username: "))
    assert seen.missed == "a password before there is a menu: Enter username:"


@pytest.mark.parametrize(
    ("deaf", "missed"),
    [
        ("c", "the key for the command line (c) leads nowhere"),
        ("e", "the key for the editor (e) leads nowhere"),
        ("down", "no line in the editor begins with linux"),
        ("end", "the cursor does not go to the end of the kernel's line"),
        ("dot", "was typed at the end of the kernel's line, and there stands: linux"),
        ("ctrl-x", "GRUB does not say that it boots what was edited"),
    ],
)
def test_keys_that_do_not_arrive(deaf: str, missed: str, clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, deaf=deaf))
    assert missed in seen.missed
    assert not edited(boot(grub=seen))


def test_blanks_at_the_end_of_the_kernels_line(clock: Clock, typist: Typist) -> None:
    """grub-mkconfig leaves one where GRUB_CMDLINE_LINUX_DEFAULT is empty."""
    for line in ("\tlinux /vmlinuz ro ", "\tlinux /vmlinuz ro  ", "\tlinux /vmlinuz root=/dev/x ro "):
        grub = Grub(clock, entry=("setparams 'x'", line, "\tinitrd /i"))
        seen = typist(grub)
        assert edited(boot(grub=seen)), seen.missed
        assert grub.lines[1] == f"{line} {PARAMETER}"


def test_a_blank_that_does_not_arrive(clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, deaf="spc"))
    assert "' ' was typed at the end of the kernel's line" in seen.missed


def test_the_words_of_fedoras_grub(clock: Clock, typist: Typist) -> None:
    """Its editor has no frame."""
    grub = Grub(clock, fedora=True)
    seen = typist(grub)
    assert edited(boot(grub=seen)), seen.missed
    assert grub.lines[2] == f"{ENTRY[2]} {PARAMETER}"


def test_a_branch_that_may_not_be_taken(clock: Clock, typist: Typist) -> None:
    entry = ("if [ x$a = xb ]; then", "  linux /a quiet", "else", "  linux /b quiet", "fi")
    seen = typist(Grub(clock, entry=entry))
    assert seen.missed.startswith("there is another line that begins with linux")
    assert not edited(boot(grub=seen))
    # A line that goes on with the word is none.
    long = "\tlinux /vmlinuz 1234567linux x"
    assert edited(boot(grub=typist(Grub(clock, entry=("setparams", long)))))


def test_an_entry_without_a_kernel(clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, entry=("setparams 'x'", "chainloader /EFI/x.efi")))
    assert seen.missed == "no line in the editor begins with linux"


def test_a_machine_that_ends(clock: Clock, typist: Typist) -> None:
    def gone() -> None:
        raise GuestFailed("the machine was powered off by its guest")

    seen = typist(Grub(clock, first=b""), alive=gone)
    assert seen.missed == "the machine was powered off by its guest"

    def dead() -> None:
        raise MachineDied("QEMU was killed")

    with pytest.raises(MachineDied):
        typist(Grub(clock, first=b""), alive=dead)


def test_nothing_at_all(clock: Clock, typist: Typist) -> None:
    seen = typist(Grub(clock, first=b"", kernel_after=1e9), seconds=60.0)
    assert seen.missed == "neither the firmware nor GRUB has a word on the serial console"
    assert clock.now < 200


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [STARTS, b"Enter username: ", b"grub> ", b"\x1b[05;03H", b"Press enter to boot", b"\xb3\\"]
            ),
        )
    )
)
def test_whatever_a_console_says_it_ends_and_is_no_edit(clock: Clock, typist: Typist, said: list[bytes]) -> None:
    begun = clock.now
    grub = Grub(clock, opens=(), first=b"".join(said))
    seen = typist(grub, seconds=300.0)
    assert not edited(boot(grub=seen))
    assert not barred(boot(outcome=Outcome.GRUB, grub=seen))
    assert clock.now - begun < 600


class Recording:
    """What GRUB 2.12 of Debian 13 wrote to OVMF 2022.11's serial console, key by key: between lines "@@@KEY@@@"."""

    def __init__(self, clock: Clock) -> None:
        parts = re.split(rb"\n@@@(\S*)@@@\n", (Path(__file__).parent / "grub-2.12.raw").read_bytes())
        self.clock = clock
        self.rest = list(zip(parts[1::2], parts[2::2], strict=True))
        self.out = self.rest.pop(0)[1]
        self.records = Path()
        self.serial = self

    @property
    def screen(self) -> object:
        raise QmpFailed("no picture")

    def kernel_runs(self) -> bool:
        return False

    def take_unread(self, size: int, timeout: float) -> bytes:
        # Cut anywhere.
        data, self.out = self.out[:100], self.out[100:]
        self.clock.now += 0.0 if data else timeout
        return data

    def send_keys(self, *keys: str) -> None:
        key, written = self.rest.pop(0)
        # Its menu showed by itself, while Escape was pressed first then.
        assert key.decode() == ("esc" if keys == ("f4",) else "-".join(keys))
        self.out += written


def test_a_grub_that_was_recorded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_grub, "time", clock)
    recording = Recording(clock)
    seen = type_at_grub(recording, "osg", lambda: None, lambda: 900.0, 1.0)  # type: ignore[arg-type]
    assert seen.missed == ""
    assert edited(boot(grub=seen))
    assert seen.line.startswith("linux /live/vmlinuz boot=live noeject quiet slab_nomerge")
    assert " page_alloc.shuffle=1 " in seen.line
    assert "lockdown=integrity apparmor=1 " in seen.line
    assert seen.line.endswith(" console=tty0 console=ttyS0,115200 osg")
    assert (seen.command_line, seen.booting) == ("grub>", "Booting a command list")
    assert recording.rest == []
