"""The kernel's facts out of a guest that may be hostile, and the answer of a checker that may change."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_shell import Answer, FakeShell, shell
from gate_samples import COMPILER, HOSTILE, RELEASE, VERSION

from pytest_osgates.evidence import Evidence
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.model import State
from pytest_osgates.observers import kconfig
from pytest_osgates.tools import Tool
from pytest_osgates.vm.errors import ChannelError, HostError, ImageError

CONFIG = (
    "# Linux/x86 6.12.57 Kernel Configuration\n"
    f'CONFIG_CC_VERSION_TEXT="{COMPILER}"\nCONFIG_BUILD_SALT="{RELEASE}"\nCONFIG_X=y\n'
).encode()
SYSCTLS = b"".join(b"kernel.x%d = %d\n" % (number, number) for number in range(150))
ENTRY = {
    "option_name": "CONFIG_X",
    "type": "kconfig",
    "reason": "self_protection",
    "decision": "kspp",
    "desired_val": "y",
    "check_result": "OK",
}
TOOL = Tool("checker", "1.0", "0" * 64, (), "test")


class Image:
    """As much of an image as is asked for."""

    def __init__(self, files: dict[str, bytes | ImageError]) -> None:
        self.files = files

    def read(self, path: str, limit: int) -> bytes | None:
        found = self.files.get(path)
        if isinstance(found, ImageError):
            raise found
        return found


def guest(changes: dict[str, bytes | Answer] | None = None) -> FakeShell:
    """A guest that answers as a Debian does, `changes` first."""
    answers: dict[str, bytes | Answer] = {
        "uname -r": RELEASE.encode() + b"\n",
        "/proc/version": VERSION.encode() + b"\n",
        "/proc/cmdline": b"BOOT_IMAGE=/live/vmlinuz quiet\n",
        "sysctl -a": SYSCTLS,
        "test -r": (1, b"", b""),
    }
    return FakeShell(
        {**(changes or {}), **{key: value for key, value in answers.items() if key not in (changes or {})}}
    )


def program(tmp_path: Path, *entries: dict[str, Any]) -> Tool:
    """A checker that prints what it was given on standard error and `entries` as its answer."""
    path = tmp_path / "checker.py"
    path.write_text(
        "import json, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "assert given['-m'] == 'json', given\n"
        "for option in ('-c', '-l', '-s', '-v'):\n"
        "    assert open(given[option]).read(), option\n"
        f"print('[+] remark')\nprint({json.dumps(json.dumps(list(entries)))})\n"
    )
    return Tool("checker", "1.0", "0" * 64, (sys.executable, "-I", str(path)), "test")


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return Evidence.create(tmp_path / "evidence", "0" * 64, "run")


def observe(asked: FakeShell, image: Any, tool: Tool, evidence: Evidence, state: State = State.LIVE) -> Any:
    return kconfig.observe(asked, image, tool, evidence, state)  # type: ignore[arg-type]


def test_a_kernel_is_observed_and_what_the_checker_was_given_is_kept(tmp_path: Path, evidence: Evidence) -> None:
    image = Image({f"/boot/config-{RELEASE}": CONFIG})
    seen = observe(guest(), image, program(tmp_path, ENTRY), evidence)
    assert seen.config is not None
    assert seen.config.name == f"image:/boot/config-{RELEASE}"
    assert (seen.config.version, seen.config.build_salt, seen.config.compiler) == ("6.12.57", RELEASE, COMPILER)
    assert (seen.release, seen.version, seen.command_line) == (RELEASE, VERSION, "BOOT_IMAGE=/live/vmlinuz quiet")
    assert seen.sysctl_count == 150
    assert [(check.option, check.result, check.area) for check in seen.checks] == [
        ("CONFIG_X", "OK", "self_protection")
    ]
    kept = evidence.root / "inputs" / "kconfig"
    assert (kept / "config").read_bytes() == CONFIG
    assert (kept / "cmdline").read_text() == "BOOT_IMAGE=/live/vmlinuz quiet\n"
    assert (kept / "sysctl").read_bytes() == SYSCTLS
    assert json.loads((kept / "result.json").read_text().splitlines()[-1]) == [ENTRY]


def test_the_running_kernels_own_config_comes_first(tmp_path: Path, evidence: Evidence) -> None:
    asked = guest({"test -r /proc/config.gz": b"", "cat -- /proc/config.gz": gzip.compress(CONFIG)})
    seen = observe(asked, Image({}), program(tmp_path, ENTRY), evidence)
    assert seen.config is not None
    assert seen.config.name == "/proc/config.gz"
    assert (evidence.root / "inputs/kconfig/config").read_bytes() == CONFIG


def test_an_installed_systems_config_is_read_in_the_guest(tmp_path: Path, evidence: Evidence) -> None:
    asked = guest({f"test -r /boot/config-{RELEASE}": b"", f"cat -- /boot/config-{RELEASE}": CONFIG})
    seen = observe(asked, None, program(tmp_path, ENTRY), evidence, State.INSTALLED)
    assert seen.config is not None
    assert seen.config.name == f"guest:/boot/config-{RELEASE}"
    assert seen.state is State.INSTALLED


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "on the disk"),
        (Image({}), "in the image"),
        (ImageError("cut short"), "cannot be read: cut short"),
        (Image({f"/boot/config-{RELEASE}": ImageError("damaged block")}), "damaged block"),
    ],
)
def test_without_a_config_nothing_is_checked_and_the_reason_is_told(
    image: Image | RootView | ImageError | None, said: str, evidence: Evidence
) -> None:
    seen = observe(guest(), image, TOOL, evidence)
    assert (seen.config, seen.checks) == (None, ())
    assert said in seen.detail


@pytest.mark.parametrize(
    "release", ["", "6.1; reboot", "../../etc/shadow", "$(id)", "6.1\n6.2", "x" * 129, "ä", "6.1/x", HOSTILE]
)
def test_a_release_that_is_none_is_refused_before_it_is_used(release: str, evidence: Evidence) -> None:
    asked = guest({"uname -r": release.encode()})
    with pytest.raises(ChannelError, match="uname -r says"):
        observe(asked, Image({}), TOOL, evidence)
    assert asked.asked == ["uname -r"]


def test_sysctls_are_read_one_by_one_where_there_is_no_procps(evidence: Evidence) -> None:
    by_file = SYSCTLS.replace(b"kernel.", b"kernel/") + b"net/ipv4/conf/eth0.5/x = 1\n"
    seen = observe(guest({"sysctl -a": (127, b"", b""), "find": by_file}), Image({}), TOOL, evidence)
    assert seen.sysctl_count == 151


def test_lines_that_are_no_sysctls_are_left_out(evidence: Evidence) -> None:
    noise = b"no equals\nbad name = 1\n\x1b[31mx = 1\n = 2\n" + b"n" * 300 + b" = 3\nok = \x1b[31mred\n"
    seen = observe(guest({"sysctl -a": SYSCTLS + noise}), Image({}), TOOL, evidence)
    assert seen.sysctl_count == 151


def test_a_command_line_stays_one_line_for_the_checker(tmp_path: Path, evidence: Evidence) -> None:
    image = Image({f"/boot/config-{RELEASE}": CONFIG})
    observe(guest({"/proc/cmdline": b"a\nb\n"}), image, program(tmp_path, ENTRY), evidence)
    assert (evidence.root / "inputs/kconfig/cmdline").read_text() == "a b\n"


def test_a_checker_that_fails_is_the_hosts_fault(evidence: Evidence) -> None:
    image = Image({f"/boot/config-{RELEASE}": CONFIG})
    code = "import sys; print('no \\x1b[31msuch option', file=sys.stderr); sys.exit(2)"
    tool = Tool("checker", "1.0", "0" * 64, (sys.executable, "-I", "-c", code), "test")
    with pytest.raises(HostError, match=r"checker 1\.0 refuses what the guest said: no such option") as caught:
        observe(guest(), image, tool, evidence)
    assert "inputs/kconfig" in str(caught.value)


def test_a_checker_whose_files_are_removed_is_told_as_that(tmp_path: Path, evidence: Evidence) -> None:
    image = Image({f"/boot/config-{RELEASE}": CONFIG})
    tree = tmp_path / "package"
    (tree / "data").mkdir(parents=True)
    code = "import shutil, sys; shutil.rmtree(sys.argv[1]); sys.exit(1)"
    during = Tool("checker", "1.0", "0" * 64, (sys.executable, "-I", "-c", code, str(tree)), "test", tree, 1)
    for _ in ("during", "before"):
        with pytest.raises(HostError, match="files were removed from"):
            observe(guest(), image, during, evidence)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[+] Config check is finished: 'OK' - 100 / 'FAIL' - 0\n",
        "[",
        "[1, 2]",
        "[{}]",
        '["x"]',
        json.dumps([{**ENTRY, "type": "firmware"}]),
        json.dumps([{key: value for key, value in ENTRY.items() if key != "check_result"}]),
        json.dumps({"checks": [ENTRY]}),
        json.dumps([ENTRY, {}]),
        "x" + json.dumps([ENTRY]),
        "null\n" + HOSTILE,
    ],
)
def test_an_answer_without_a_list_of_checks_is_refused(text: str) -> None:
    with pytest.raises(HostError, match="printed no list of checks") as caught:
        kconfig._parse(text, TOOL)
    assert "\x1b" not in str(caught.value)


def test_remarks_around_the_list_are_no_matter() -> None:
    text = "[+] Kernel: 6.12\n[!] WARNING\n" + json.dumps([{**ENTRY, "check_result": 'FAIL: "n"\n'}]) + "\n[done]\n"
    (check,) = kconfig._parse(text, TOOL)
    assert (check.option, check.type, check.wanted, check.result) == ("CONFIG_X", "kconfig", "y", 'FAIL: "n"')


def test_an_empty_list_is_no_checks() -> None:
    assert kconfig._parse("[]", TOOL) == ()


def test_config_gz_is_unpacked() -> None:
    assert kconfig._gunzip(gzip.compress(CONFIG)) == CONFIG
    assert kconfig._gunzip(gzip.compress(CONFIG) + gzip.compress(b"CONFIG_Y=y\n")).endswith(b"CONFIG_Y=y\n")


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(64 << 20), compresslevel=9)
    assert len(bomb) < 100_000
    with pytest.raises(ChannelError, match="holds more than"):
        kconfig._gunzip(bomb)
    with pytest.raises(ChannelError, match="holds more than"):
        kconfig._gunzip(gzip.compress(bytes(1 << 20)) * 5)


@pytest.mark.parametrize(
    "packed",
    [
        b"CONFIG_X=y\n",
        gzip.compress(CONFIG, mtime=0)[:-9],
        gzip.compress(CONFIG, mtime=0)[:-1] + b"!",
        gzip.compress(CONFIG, mtime=0)[:12] + b"\xff" * 20,
        gzip.compress(CONFIG, mtime=0) + b"garbage",
        b"\x1f\x8b",
    ],
)
def test_a_damaged_config_gz_is_refused(packed: bytes) -> None:
    with pytest.raises(ChannelError, match="not gzip"):
        kconfig._gunzip(packed)


def test_fake_answers_are_found_by_what_the_command_contains() -> None:
    assert shell({"uname": b"x"}).run("uname -r").text == "x"
    assert shell({}).run("uname -r").status == 127
