"""A guest that is ready in seconds: the demo's kernel, and an initramfs of nothing but busybox.

It opens the guest channel's ports itself, and a script that is called systemctl answers what is asked of one. Gates
pass on it, so that a fault alone makes the difference. BIOS only.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Mapping
from pathlib import Path

import zstandard

from pytest_osgates.image.rootfs import open_root
from pytest_osgates.observers.systemd import STARTED_MESSAGE
from pytest_osgates.vm.process import run

MAGIC = b"070701"
# Of the demo's own initramfs: busybox with its libraries.
WANTED = (
    *("usr/bin/busybox", "usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    *("usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libresolv.so.2"),
)
APPLETS = (
    *("sh", "mount", "cat", "echo", "rm", "mkdir", "head", "wc", "timeout", "ln", "sleep", "chmod", "printf", "sed"),
    *("ls", "poweroff", "sync", "dd", "yes", "kill", "date", "mknod", "grep", "reboot", "ps", "cut", "stty"),
    *("ip", "insmod", "udhcpc", "nc"),
)

# For a network, and for the power button; in the order in which they need each other.
MODULES = (
    *("net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"),
    *("drivers/acpi/button.ko", "drivers/input/evdev.ko"),
)
# Sends what canaries are made of.
BASH = ("/usr/bin/bash", "/usr/lib/x86_64-linux-gnu/libtinfo.so.6")
NETWORK = """
for module in MODULES; do insmod "/modules/$module"; done
ip link set lo up
while ! ls /dev/input/event* >/dev/null 2>&1; do sleep 0.1; done
for button in /dev/input/event*; do (head -c 1 "$button" && poweroff -f) & done
"""
# Who asks for an address says no more of itself than its MAC address.
ADDRESS = """
ip link set eth0 up
udhcpc -q -n -i eth0 -s /usr/bin/lease -C -V ''
"""
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
"""

INIT = """#!/bin/sh
export PATH=/usr/bin
mkdir -p /proc /sys /dev /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir /dev/virtio-ports
# Ports are told to the kernel one by one, after the device is there.
for device in /sys/bus/virtio/drivers/virtio_console/virtio*; do
    while [ -e "$device" ] && ! [ -s /sys/class/virtio-ports/vport*p3/name ]; do sleep 0.1; done
done
for port in /sys/class/virtio-ports/*; do
    [ -e "$port/name" ] && ln -s "../${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
done
EARLY
for port in /dev/virtio-ports/*.kmsg; do
    [ -e "$port" ] && { cat /dev/kmsg >"$port" & }
done
for port in /dev/virtio-ports/*; do
    case $port in
        *.kmsg | *.journal | *'*') ;;
        *) (while :; do sh SHELL <>"$port" >&0 2>&1; sleep 1; done) & ;;
    esac
done
SLOWLY
echo >/run/ready
for port in /dev/virtio-ports/*.journal; do
    [ -e "$port" ] && echo '{"_PID": "1", "MESSAGE_ID": "STARTED", "UNIT": "multi-user.target"}' >"$port"
done
LATE
echo 'quick login: ' >/dev/ttyS0
echo 'quick login: ' >/dev/tty0
while :; do sleep 1000; done
"""

SYSTEMCTL = """#!/bin/sh
case "$*" in
    get-default) echo multi-user.target ;;
    "is-active --"*)
        shift 2
        for unit; do
            if [ "$unit" = multi-user.target ] && [ -e /run/ready ]; then echo active; else echo inactive; fi
        done ;;
    "show -p Kernel"*) printf 'KernelTimestampMonotonic=0\\nUserspaceTimestampMonotonic=2000000\\n' ;;
    "show -p Active"*) echo ActiveEnterTimestampMonotonic=3000000 ;;
    is-system-running) echo running ;;
    list-*) ;;
    *) echo "systemctl: $*?" >&2; exit 64 ;;
esac
"""

JOURNALCTL = """#!/bin/sh
case "$*" in
    *MESSAGE_ID=*) exit 1 ;;
    *) echo '{"_PID": "1", "MESSAGE": "quick"}' ;;
esac
"""


def read_cpio(data: bytes) -> tuple[dict[str, tuple[int, bytes]], bytes]:
    """The members (mode, content) of a newc archive (cpio(5)) at the start of `data`, and what follows it."""
    members: dict[str, tuple[int, bytes]] = {}
    linked: dict[int, bytes] = {}
    links: dict[str, int] = {}
    at = 0
    while True:
        assert data[at : at + 6] == MAGIC
        inode, mode, size, name_size = (int(data[at + start : at + start + 8], 16) for start in (6, 14, 54, 94))
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            # Of hard links only the last one has the content.
            whole = {name: (mode, linked[links[name]]) for name, (mode, _) in members.items()}
            return whole, data[at:].lstrip(b"\0")
        members[name] = (mode, b"")
        links[name] = inode
        linked[inode] = data[at : at + size] or linked.get(inode, b"")
        at = (at + size + 3) // 4 * 4


def write_cpio(members: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A newc archive."""
    out = bytearray()
    for number, (name, (mode, content)) in enumerate({**members, "TRAILER!!!": (0, b"")}.items(), 1):
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, time, size, device, special device, length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        out += MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(demo: bytes, scripts: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
    """The quick guest's, from the demo's own; `scripts` and `files`: by path, to be run and to be read or run."""
    _, rest = read_cpio(demo)
    members, _ = read_cpio(zstandard.ZstdDecompressor().decompressobj().decompress(rest))
    kept = {
        name: entry
        for name, entry in members.items()
        if name in WANTED or stat.S_ISDIR(entry[0]) or (stat.S_ISLNK(entry[0]) and "/" not in name)
    }
    kept |= {f"usr/bin/{name}": (0o120777, b"busybox") for name in APPLETS}
    kept |= {name: (0o100755, text.encode()) for name, text in scripts.items()}
    kept |= {str(path): (0o40755, b"") for name in files for path in Path(name).parents if str(path) != "."}
    kept |= {name: (0o100755, data) for name, data in files.items()}
    return write_cpio(dict(sorted(kept.items())))


def for_network(demo_iso: Path) -> dict[str, bytes]:
    """`MODULES` of the demo's kernel, uncompressed, and its `BASH`, by their path in the initramfs."""
    found = {}
    with open_root(demo_iso) as root:
        (release,) = root.list_dir("/usr/lib/modules") or ()
        for name in MODULES:
            data = root.read(f"/usr/lib/modules/{release}/kernel/{name}.xz", 8 << 20)
            assert data is not None, name
            found[f"modules/{Path(name).name}"] = lzma.decompress(data)
        for name in BASH:
            data = root.read(name, 8 << 20)
            assert data is not None, name
            found[name.lstrip("/")] = data
    return found


def make_quick_iso(
    demo_iso: Path,
    directory: Path,
    *,
    early: str = "",
    slowly: str = "sleep 2",
    late: str = "",
    shell: str = "",
    quiet: bool = True,
    network: str | None = None,
) -> Path:
    """The ISO. `early`: shell commands before anything else is done; `slowly`: between the channel's opening and
    being ready; `late`: after that; `shell`: a script that serves the channel instead of sh itself; `network`:
    commands that bring it up (`ADDRESS`); None: without."""
    tree = directory / "tree"
    for name in ("isolinux", "live"):
        (tree / name).mkdir(parents=True)
    files = ("isolinux/isolinux.bin", "isolinux/ldlinux.c32", "live/vmlinuz", "live/initrd.img")
    extract = [word for name in files for word in ("-extract", f"/{name}", str(tree / name))]
    run(["xorriso", "-no_rc", "-osirrox", "on", "-indev", str(demo_iso), *extract], timeout=60)
    init = INIT.replace("STARTED", STARTED_MESSAGE)
    if network is not None:
        names = " ".join(Path(name).name for name in MODULES)
        early = NETWORK.replace("MODULES", names) + early
        slowly = network + slowly
    init = init.replace("EARLY", early).replace("SLOWLY", slowly).replace("LATE", late)
    init = init.replace("SHELL", "/usr/bin/shell" if shell else "")
    scripts = {"init": init, "usr/bin/systemctl": SYSTEMCTL, "usr/bin/journalctl": JOURNALCTL, "usr/bin/lease": LEASE}
    if shell:
        scripts["usr/bin/shell"] = shell
    initrd = tree / "live/initrd.img"
    data = initramfs(initrd.read_bytes(), scripts, {} if network is None else for_network(demo_iso))
    initrd.unlink()
    initrd.write_bytes(data)
    words = ("quiet" if quiet else "loglevel=7") + " ipv6.disable=1 net.ifnames=0"
    (tree / "isolinux/isolinux.cfg").write_text(
        "default quick\nprompt 0\ntimeout 10\nlabel quick\n\tkernel /live/vmlinuz\n"
        f"\tappend initrd=/live/initrd.img {words} tsc=reliable mitigations=off console=ttyS0 console=tty0\n"
    )
    path = directory / "quick.iso"
    command = ["xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-r", "-o", str(path)]
    boot = ["-c", "isolinux/boot.cat", "-b", "isolinux/isolinux.bin", "-no-emul-boot"]
    run([*command, *boot, "-boot-load-size", "4", "-boot-info-table", str(tree)], timeout=60)
    return path


PROFILE = """schema = 1
name = "quick"
gates = ["gates"]
[machine]
firmware = ["bios"]
memory_mib = 512
cpus = 1
[boot]
ready_target = "multi-user.target"
[gate.boot]
deadline_s = 120
watch_s = 4
[gate.asks]
state = "live"
"""

# It asks for some seconds, and says before in the evidence that it begins.
ASKS = """
import pytest
from pytest_osgates.model import Control, Finding, Gate, Observation, Policy, Severity, State

class Seen(Observation):
    state: State
    word: str

class Wanted(Policy):
    pass

def judge(seen, policy):
    return [] if seen.word == "yes" else [Finding(rule="word", subject="guest", seen=seen.word, wanted="yes")]

GATE = Gate(
    name="asks", title="the guest answers", states=(State.LIVE,), observation=Seen, policy=Wanted, judge=judge,
    controls=(Control("another word", lambda seen: seen.model_copy(update={"word": "no"}), "word", "guest"),),
)

@pytest.mark.asks
def test_asks(os_run, os_shell, os_gate_state, os_judge):
    os_run.evidence.write("inputs/asks/begun", b"")
    os_judge(Seen(state=os_gate_state, word=os_shell.run("sleep 4; echo yes").check().text.strip()))
"""


def write_profile(directory: Path, **changes: str) -> Path:
    """The quick guest's profile, with other values for some keys, and its gate `asks`."""
    text = PROFILE
    for key, value in changes.items():
        old = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(old, f"{key} = {value}")
    (directory / "gates").mkdir(exist_ok=True)
    (directory / "gates" / "test_asks.py").write_text(ASKS)
    path = directory / "quick.toml"
    path.write_text(text)
    return path
