"""What is taken for a system that is ready, where nobody can be asked."""

from __future__ import annotations

import re

import pytest

from pytest_osgates.profiles.schema import READY_TEXT

READY = [
    "osgates-demo login:",
    "debian login: ",
    "Debian GNU/Linux 13 debian tty1\n\ndebian login:",
    "user@debian:~$",
    "root@live:~# ",
    "[liveuser@localhost-live ~]$",
]
NOT_READY = [
    "",
    "dracut:/#",
    "(initramfs)",
    "/ #",
    "sh-5.2#",
    "grub>",
    "Last login: Fri Nov 20",
    "Press Enter for maintenance (or press Control-D to continue):",
    "[    1.234567] watchdog: BUG: soft lockup - CPU#",
    "Welcome to GRUB!",
    "login: user (automatic login)",
    "mail to root@localhost: see #5",
]


@pytest.mark.parametrize("text", READY)
def test_a_prompt_of_a_running_system(text: str) -> None:
    assert re.search(READY_TEXT, text, re.MULTILINE)


@pytest.mark.parametrize("text", NOT_READY)
def test_anything_else(text: str) -> None:
    assert not re.search(READY_TEXT, text, re.MULTILINE)
