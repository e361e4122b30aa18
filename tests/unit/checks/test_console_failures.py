"""The table of known failures: real lines that must be noticed, and innocent ones that must not."""

from __future__ import annotations

import re

import pytest

from pytest_osgates.checks.boot import patterns
from pytest_osgates.data import load
from pytest_osgates.vm.watch import Watcher

FAILURES = {
    "kernel-panic": [
        "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
        "0,612,1834567,-;Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
        "[    1.240000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---",
    ],
    "kernel-oops": [
        "[    5.123456] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[    5.123456][  T123] Oops: Oops: 0000 [#1] SMP",
        "<1>Oops: 0000 [#1]",
        "1,700,5123456,-;Oops: general protection fault, maybe for address 0x0: 0000 [#1] PREEMPT SMP",
        "[    5.1] BUG: unable to handle page fault for address: ffffffffc0000000",
        "1,699,5123456,-;BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    5.1] general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP",
        "1,9,5,-;Unable to handle kernel paging request at virtual address ffff000000000000",
        "[    6.0] stack segment: 0000 [#1] PREEMPT SMP",
        "[    6.0] invalid opcode: 0000 [#1] PREEMPT SMP PTI",
        "4,701,6000000,-;divide error: 0000 [#1] SMP",
    ],
    "kernel-bug": [
        "[    7.5] kernel BUG at fs/ext4/inode.c:2721!",
        "2,800,7500000,-;kernel BUG at mm/slub.c:448!",
        "[    7.5] BUG: KASAN: slab-out-of-bounds in kfree+0x12/0x40",
        "1,801,7500000,-;BUG: Bad page state in process swapper/0  pfn:12345",
        "[    7.5] BUG: scheduling while atomic: swapper/0/1/0x00000002",
        "[    7.5] watchdog: BUG: spinlock lockup suspected on CPU#0, swapper/0/1",
    ],
    "soft-lockup": [
        "[   45.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [systemd:1]",
        "[   45.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
        "3,900,45100000,-;rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "[  245.1] INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
    ],
    "kernel-warning": [
        "[    3.3] WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:8511 sched_init+0x20/0x410",
        "4,500,3300000,-;WARNING: CPU: 1 PID: 77 at drivers/gpu/drm/drm_atomic.c:10 drm_x+0x1/0x2 [drm]",
        "[    3.3] WARNING: kernel/sched/core.c:8511 at sched_init+0x20/0x410, CPU#0: swapper/0",
    ],
    "out-of-memory": [
        "[   60.1] Out of memory: Killed process 512 (gnome-shell) total-vm:4021232kB, anon-rss:812344kB",
        "6,999,60100000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,task=x,pid=5",
    ],
    "initramfs-shell": [
        "(initramfs) ",
        "Gave up waiting for root file system device.  Common problems:",
        "Gave up waiting for root device.  Common problems:",
        "ALERT!  UUID=1234-5678 does not exist.  Dropping to a shell!",
        "Unable to find a medium containing a live file system",
    ],
    "dracut-emergency": [
        "Entering emergency mode. Exit the shell to continue.",
        "dracut-initqueue[456]: Warning: dracut-initqueue timeout - starting timeout scripts",
        "[   12.0] dracut: FATAL: Don't know how to handle 'root=live:CDLABEL=none'",
        "dracut:/# ",
        'Generating "/run/initramfs/rdsosreport.txt"',
    ],
    "systemd-emergency": [
        'You are in emergency mode. After logging in, type "journalctl -xb" to view',
        "You are in rescue mode. After logging in, type",
        "[  OK  ] Reached target emergency.target - Emergency Mode.",
        "[  OK  ] Reached target Emergency Mode.",
        "30,400,9000000,-;systemd[1]: Reached target rescue.target - Rescue Mode.",
        "[  OK  ] Started emergency.service - Emergency Shell.",
        "Cannot open access to console, the root account is locked.",
    ],
    "systemd-freeze": [
        "[    9.1] systemd[1]: Freezing execution.",
        "24,401,9100000,-;systemd[1]: Caught <SEGV>, dumped core as pid 180.",
        "[!!!!!!] Failed to mount API filesystems.",
    ],
    "secure-boot-refused": [
        "error: bad shim signature.",
        "Verification failed: (0x1A) Security Violation",
        "error: you need to load the kernel first.",
        "Start Image failed: Security Policy Violation",
    ],
    "no-boot-device": [
        "No bootable device.",
        "Boot failed: not a bootable disk",
        "Boot failed: could not read the boot disk",
        "Boot failed: Could not read from CDROM (code 0004)",
        "BdsDxe: No bootable option or device was found.",
        "Shell> ",
    ],
    "boot-loader-error": [
        "grub rescue> ",
        "grub>",
        "grub> ",
        "error: file `/live/vmlinuz' not found.",
        "error: file `/boot/initrd.img' not found.",
        "error: ../../grub-core/fs/fshelp.c:257:file `/live/vmlinuz' not found.",
        "ISOLINUX 6.04 ETCD isolinux.bin missing or corrupt.",
        "Failed to load ldlinux.c32",
    ],
}

INNOCENT = [
    "",
    'BdsDxe: loading Boot0001 "UEFI QEMU DVD-ROM QM00001 " from PciRoot(0x0)/Pci(0x1F,0x2)/Sata(0x0,0xFFFF,0x0)',
    "SeaBIOS (version 1.16.2-debian-1.16.2-1)",
    "Booting from DVD/CD...",
    "error: file `/boot/grub/fonts/unicode.pf2' not found.",
    "error: no suitable video mode found.",
    "error: no such device: 2024-01-01-00-00-00-00.",
    "GNU GRUB  version 2.12-9",
    "Loading Linux 6.12.57+deb13-amd64 ...",
    "[    0.000000] Linux version 6.12.57+deb13-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC",
    "[    0.000000] Command line: BOOT_IMAGE=/live/vmlinuz boot=live panic=-1 oops=panic slab_debug=FZP debug",
    "6,2,0,-;Command line: BOOT_IMAGE=/live/vmlinuz systemd.unit=rescue.target nowatchdog",
    "[    0.000000] secureboot: Secure boot enabled",
    "[    0.000000] [Firmware Bug]: TSC_DEADLINE disabled due to Errata; please update microcode",
    "[    0.123456] ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PCI0], AE_NOT_FOUND (20240827/psargs-332)",
    "6,339,5140900,-;text",
    "6,340,5140901,-;ata1.00: ATAPI: QEMU DVD-ROM, 2.5+, max UDMA/100",
    "[    0.5] Warning: unable to open an initial console.",
    "[    0.6] rcu: Hierarchical SRCU implementation.",
    "[    0.7] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
    "[    1.0] systemd[1]: Reached target multi-user.target - Multi-User System.",
    "30,412,2837465,-;systemd[1]: Reached target getty.target - Login Prompts.",
    "[  OK  ] Reached target graphical.target - Graphical Interface.",
    "[  OK  ] Listening on systemd-rfkill.socket - Load/Save RF Kill Switch Status /dev/rfkill Watch.",
    "[FAILED] Failed to start ssh.service - OpenBSD Secure Shell server.",
    "[DEPEND] Dependency failed for emergency-notify.service - tells of an emergency.",
    "systemd[1]: emergency.service - Emergency Shell was skipped because no trigger condition checks were met.",
    "[    2.0] traps: demo[812] general protection fault ip:7f0000000000 sp:7ffd00000000 error:0 in libc.so.6",
    "[    2.1] demo[813]: segfault at 0 ip 0000000000000000 sp 00007ffd error 14 in demo[400000+1000]",
    "cloud-init[600]: DEBUG: nothing to do",
    "sddm[700]: DEBUG: Unable to handle kernel",
    "[    3.0] pci 0000:00:02.0: BAR 0: error updating (0xfd000008 != 0x00000008)",
    "[    3.1] BTRFS warning (device vda): checksum verify failed",
    "WARNING: The following packages cannot be authenticated!",
    "[    3.2] systemd-journald[200]: Received client request to flush runtime journal.",
    "dracut-pre-udev[300]: rpcbind: another rpcbind is already running. Aborting",
    "[    4.0] PM: suspend entry (deep); Freezing user space processes",
    "kernel.panic = 10",
    "kernel.oops_limit = 100",
    "user@demo:~$ grep 'error: file' log",
    "  grub> is the prompt of GRUB",
    "demo login: ",
    "[    5.0] Bluetooth: Core ver 2.22",
    "3,77,100,-;usb 1-1: device descriptor read/64, error -71",
    "[    5.5] sd 0:0:0:0: [sda] Attached SCSI disk #1",
]


def matching(line: str) -> set[str]:
    """Names of the patterns that the line sets off, found as a running machine finds them."""
    watcher = Watcher(patterns())
    watcher.scan("serial", line)
    return {alarm.name for alarm in watcher.alarms}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in FAILURES.items() for line in lines])
def test_a_failure_is_noticed_under_its_name(name: str, line: str) -> None:
    assert name in matching(line)


@pytest.mark.parametrize("line", INNOCENT)
def test_an_innocent_line_is_left_alone(line: str) -> None:
    assert matching(line) == set()


def test_colours_do_not_hide_a_failure() -> None:
    assert matching(
        "\x1b[0;1;31m[  OK  ]\x1b[0m Reached target \x1b[1memergency.target\x1b[0m - Emergency Mode."
    ) == {"systemd-emergency"}


def test_a_soft_lockup_is_not_told_twice() -> None:
    assert matching(FAILURES["soft-lockup"][0]) == {"soft-lockup"}
    assert matching(FAILURES["kernel-oops"][4]) == {"kernel-oops"}


def test_every_pattern_is_tested_and_complete() -> None:
    entries = load("console_failures")["pattern"]
    assert [entry["name"] for entry in entries] == list(FAILURES)
    for entry in entries:
        assert set(entry) - {"waits"} == {"name", "subject", "regex", "fatal", "meaning", "source"}
        assert re.compile(entry["regex"]).search("") is None
        assert all(entry[key] for key in ("subject", "meaning", "source"))
        assert isinstance(entry["fatal"], bool)


def test_who_waits_for_a_passphrase_may_time_out_and_go_on_waiting() -> None:
    timeout, *others = sorted(FAILURES["dracut-emergency"], key=lambda line: "timeout scripts" not in line)
    for asked in (False, True):
        watcher = Watcher(patterns(asked=asked))
        watcher.scan("serial", timeout)
        assert bool(watcher.alarms) is not asked
    for line in others:
        watcher = Watcher(patterns(asked=True))
        watcher.scan("serial", line)
        assert [alarm.name for alarm in watcher.alarms if alarm.fatal] == ["dracut-emergency"]


def test_long_lines_of_noise_set_nothing_off() -> None:
    watcher = Watcher(patterns())
    for line in ("a" * 4096, "dracut-initqueue" * 256, "ALERT! " * 600, "error: " + "a:" * 2000, ";a " * 1400):
        watcher.scan("serial", line)
    assert watcher.alarms == ()
