"""The table of what an unlocking machine shows: real lines for each sign, and innocent ones."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pytest_osgates.data import load
from pytest_osgates.observers import tpm_talk
from pytest_osgates.observers.tpm_talk import Login

LINES = load("unlock_console")["line"]
# Quoted from consoles of bookworm and trixie, Fedora and busybox, or from the sources that the table names.
REAL = {
    "shell": [
        "(initramfs) ",
        "~ # ",
        "/ # ",
        "# ",
        "sh-5.2# ",
        "bash-5.2$ ",
        "root@osgates-demo:~# ",
        "root@(none):/# ",
        "[root@fedora ~]# ",
        "dracut:/# ",
        "switch_root:/# ",
        "emergency:/root# ",
        "BusyBox v1.37.0 (Debian 1:1.37.0-6+b3) built-in shell (ash)",
        "[  OK  ] Started debug-shell.service - Early root shell on /dev/tty9 FOR DEBUGGING ONLY.",
    ],
    "login": ["osgates-demo login: ", "fedora login:", "my.host-1 login: [   61.123456] audit: type=1400"],
    "locked": ["Cannot open access to console, the root account is locked."],
    "password": ["Give root password for maintenance", "Give root password for system maintenance"],
    "emergency": ["Press Enter for maintenance", "You are in emergency mode. After logging in, type"],
    "stopped": ["grub rescue> ", "grub> ", "error: bad shim signature.", "Kernel panic - not syncing: Attempted"],
    "refused": [
        "No key available with this passphrase.",
        "cryptsetup: ERROR: vda3_crypt: cryptsetup failed, bad password or options?",
        "systemd-cryptsetup[312]: Failed to activate with specified passphrase. (Passphrase incorrect?)",
    ],
    "pin": [
        "\U0001f510 Please enter TPM2 PIN: ",
        "\U0001f510 Please enter LUKS2 token PIN: (press TAB for no echo) ",
        "Enter token PIN: ",
        "Enter token 0 PIN: ",
        "TPM2 PIN: ",
    ],
    "prompt": [
        "Enter passphrase for /dev/disk/by-uuid/05c0de01-0000-4000-8000-000000000002: ",
        "\U0001f510 Please enter passphrase for disk QEMU_HARDDISK (root): (press TAB for no echo) ",
        "Please unlock disk vda3_crypt: ",
        "Enter passphrase for hd0,gpt2 (05c0de01000040008000000000000002): ",
    ],
    "reason": [
        "The TPM did not unlock the disk: no TPM device.",
        "No TPM device.",
        "Current policy digest does not match stored policy digest, cancelling TPM2 authentication attempt.",
        "Failed to load HMAC key in TPM: tpm:parameter(1):integrity check failed",
        "Couldn't find signature for this PCR bank, PCR index and public key.",
        "Failed to load PCR signature: No such file or directory",
        (
            "No TPM2 metadata matching the current system state found in LUKS2 header, falling back to traditional"
            " unlocking."
        ),
        "Failed to unseal secret using TPM2: No such device or address",
        "TPM policy does not match current system state. Either system has been tempered with or policy out-of-date",
        "No TPM2 hardware discovered and EFI firmware does not see it either, falling back to traditional unlocking.",
    ],
    "bad-pin": [
        "Bad PIN.",
        "No token could be unlocked with this PIN.",
        "TPM2 PIN unlock failed, falling back to traditional unlocking.",
        (
            "Failed to open session in TPM: tpm:session(1):the authorization HMAC check failed and DA counter"
            " incremented"
        ),
    ],
    "lockout": [
        "TPM is in dictionary attack lock-out mode.",
        "TPM2 device is in dictionary attack lockout mode.",
        (
            "tpm:warn(2.0): authorizations for objects subject to DA protection are not allowed at this time because"
            " the TPM is in DA lockout mode"
        ),
    ],
    "sysrq-r": ["[   25.065342] sysrq: Keyboard mode set to system default"],
    "sysrq-k": ["sysrq: SAK", "sysrq: SysRq : SAK"],
    "sysrq-f": ["sysrq: Manual OOM execution"],
    "sysrq-e": ["sysrq: Terminate All Tasks"],
    "sysrq-i": ["sysrq: Kill All Tasks"],
    "sysrq-off": ["[   25.065342] sysrq: This sysrq operation is disabled."],
}
INNOCENT = [
    # That it did not is no word of why.
    "The TPM did not unlock the disk.",
    "The TPM did not unlock the disk:",
    "Last login: Mon Nov 22 00:00:00 on ttyS0",
    "[    1.2] ima: No TPM chip found, activating TPM-bypass!",
    "[    0.5] tpm_crb MSFT0101:00: Disabling hwrng",
    "A start job is running for /dev/disk/by-uuid/05c0de01 (1min 3s / no limit)",
    "[  OK  ] Reached target cryptsetup.target - Local Encrypted Volumes.",
    "         Starting systemd-ask-password-console.path - Dispatch Password Requests to Console...",
    "echo osgates-$((6*7))",
    "Loading initial ramdisk ...",
    "### 42 % ###",
    "user@host: see the manual",
    "GNU GRUB  version 2.12",
    "Token 0 (systemd-tpm2) requires PIN.",
    "pinctrl core: initialized pinctrl subsystem",
    "PIN querying disabled via 'headless' option.",
    "The kernel is in lockdown mode",
    # The kernel got another key, or is still at an earlier one.
    "[   25.065342] sysrq: HELP : loglevel(0-9) reboot(b) terminate-all-tasks(e) sak(k) unraw(r)",
    "[   25.065342] sysrq: OOM request ignored. No task eligible",
]


def found(line: str) -> set[str]:
    return {row["sign"] for row in LINES if re.search(row["regex"], line)}


@pytest.mark.parametrize(("sign", "line"), [(sign, line) for sign, lines in REAL.items() for line in lines])
def test_real_lines(sign: str, line: str) -> None:
    assert sign in found(line)
    if sign not in ("shell", "emergency", "locked"):
        assert "shell" not in found(line)
    if sign != "login":
        assert "login" not in found(line)
    # Never is a passphrase typed at the PIN's prompt, or the PIN at the passphrase's.
    assert not {"pin", "prompt"} <= found(line)


@pytest.mark.parametrize("line", INNOCENT)
def test_innocent_lines(line: str) -> None:
    assert found(line) == set()


@pytest.mark.parametrize("console", ["serial", "screen"])
@pytest.mark.parametrize("line", [line for sign in ("reason", "bad-pin", "lockout") for line in REAL[sign]])
def test_what_the_journal_is_asked_for_has_it(line: str, console: str, tmp_path: Path) -> None:
    """The very line that is typed at the guest's shell lets it through, and nothing else."""
    journal = tmp_path / "journalctl"
    journal.write_text(
        '#!/bin/sh\nfor i in $(seq 300); do echo "Some signature of nobody, for this"; done\nexec cat\n'
    )
    journal.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", tpm_talk.journal_line(Login(user="root"), console)],
        input=f"Reached target x.\n{line}\n", capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    assert done.stdout == f"{line[:150]}\nosgates-journal-42\n"
    assert done.stderr == ""


def test_each_line_has_its_source_and_fits_nothing_empty() -> None:
    assert set(REAL) == {row["sign"] for row in LINES}
    for row in LINES:
        assert row["source"]
        assert not re.search(row["regex"], "")


def test_signs_come_in_the_order_in_which_they_are_believed() -> None:
    """Where a prompt and a login were both seen, it is the login that counts."""
    order = list(dict.fromkeys(row["sign"] for row in LINES))
    assert order == list(REAL)
