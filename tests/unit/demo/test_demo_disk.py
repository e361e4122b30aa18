"""What the demo's disk is made of, as far as no disk has to be made."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path
from typing import cast

import pytest

from pytest_osgates.checks.registry import GATES
from pytest_osgates.checks.tpm_model import tampers
from pytest_osgates.cli import main
from pytest_osgates.demo import disk as demo_disk
from pytest_osgates.demo.disk import build_demo_disk, known_bytes, on_screen, tpm_token
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.demo.unlock import PLUGIN, SCRIPT, TPM_STACK, TpmUnlock, WayIn, unlock_members
from pytest_osgates.image.diff.cpio import archives, members
from pytest_osgates.image.diff.ranges import BytesContent
from pytest_osgates.image.disk.contents import looks_random
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.profiles import loader
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.host import Host


def test_variants_are_named_once_and_expect_rules_of_the_gate() -> None:
    names = variant_names()
    assert len(set(names)) == len(names) >= 12
    source = "".join(path.read_text() for path in Path(__file__).parents[3].glob("pytest_osgates/checks/luks*.py"))
    for variant in map(load_disk_file().named, names):
        assert variant.expects.gate in GATES
        assert variant.expects.verdict == "FAIL"
        # Rules of one kind are made from a word: keyslot-memory, keyslot-time.
        rule = variant.expects.rule
        assert f'"{rule}"' in source or f'("{rule.rpartition("-")[2]}"' in source, rule


def test_the_appended_archive_is_one() -> None:
    for before in (b"", b"x", b"1234567"):
        made = appended_archive(
            len(before), {"a/b/key": (0o600, b"secret"), "crypttab": (0o644, b"root x /a/b/key\n")}
        )
        found = archives(BytesContent(bytes(len(before)) + made), to_end=True)
        entries = [(member.name, member.numbers[1], data) for member, data in members(found[0], 1000)]
        assert entries == [
            ("a", 0o40755, b""),
            ("a/b", 0o40755, b""),
            ("a/b/key", 0o100600, b"secret"),
            ("crypttab", 0o100644, b"root x /a/b/key\n"),
        ]


def test_known_bytes_look_like_a_key_and_are_no_secret() -> None:
    assert looks_random(known_bytes("EFI/BOOT/fonts.dat"))
    assert known_bytes("a") == known_bytes("a") != known_bytes("b")
    assert tpm_token((7,), 2)["keyslots"] == ["2"]


def test_wrong_requests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no weakened disk 'x'"):
        build_demo_disk(tmp_path / "none.iso", tmp_path / "d", lambda stage, fraction: None, "x")
    assert main(["demo-disk", "--weak", "nothing"]) == 4
    assert main(["demo-disk", "-o", str(tmp_path)]) == 4
    assert main(["demo-disk", "-o", str(tmp_path / "no" / "d")]) == 4
    assert main(["demo-disk", "--list-weak"]) == 0
    assert "luks: luks1 partition 2" in capsys.readouterr().out


def test_cryptsetup_takes_no_lock_of_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/run/cryptsetup is root's alone: an ordinary user would make no disk."""
    argvs: list[list[str]] = []
    monkeypatch.setattr(demo_disk, "run", lambda argv, **_: argvs.append(argv))
    spec = load_disk_file()
    (tmp_path / "medium").mkdir()
    for name in ("no-passphrase", "luks1", "extra-slot"):
        (tmp_path / "root.img").touch()
        demo_disk._Maker(tmp_path, spec, spec.named(name), {}).volume(tmp_path / "medium")
    given = [argv for argv in argvs if argv[0] == "cryptsetup"]
    actions = {argv[1] for argv in given}
    assert actions == {"reencrypt", "luksUUID", "convert", "luksAddKey", "token", "luksKillSlot"}
    assert all("--disable-locks" in argv for argv in given)


class Root:
    """A live root with one kernel, as far as it is asked for."""

    def list_dir(self, path: str) -> tuple[str, ...]:
        return ("6.12",)

    def read(self, path: str, limit: int) -> bytes:
        return lzma.compress(path.encode())


UUID = "05c0de01-0000-4000-8000-000000000002"


def initrd_script(tpm: TpmUnlock | None, *, way_in: WayIn = "") -> tuple[str, set[str]]:
    members = unlock_members(cast("RootView", Root()), UUID, dict(os.environ), tpm, way_in=way_in)
    text = members[SCRIPT][1].decode()
    assert "@" not in text.replace('"$@"', "")
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    return text, set(members)


def test_the_script_asks_until_the_passphrase_is_right() -> None:
    text, members = initrd_script(None)
    assert "tpm" not in text
    assert "/bin/sh\n" not in text.removeprefix("#!/bin/sh\n")
    assert {"osgates/cryptsetup", "osgates/xts.ko", "osgates/dm-crypt.ko"} < members
    assert not any("tss2" in name for name in members)
    assert "    /bin/sh\n" in initrd_script(None, way_in="shell")[0]
    assert "Press Enter for maintenance" in initrd_script(None, way_in="emergency")[0]


def test_the_script_asks_the_tpm_first_and_enrols_it_once() -> None:
    text, members = initrd_script(TpmUnlock((4, 7, 8, 9)))
    assert text.index("--token-only") < text.index("until unlock --tries 1")
    assert "--tpm2-pcrs=4+7+8+9" in text
    assert {f"osgates/{name}" for name in TPM_STACK} < members
    # Where this cryptsetup looks for it, and through no link of the initrd.
    assert [name for name in members if name.endswith(PLUGIN) and name.startswith("usr/lib")]
    assert "--tpm2-pcrs= " in initrd_script(TpmUnlock(()))[0]
    assert "PIN" not in text


def test_the_script_hands_on_what_the_image_signed() -> None:
    text, _ = initrd_script(TpmUnlock((7, 12), signed=(11,)))
    enrols = "--tpm2-pcrs=7+12 --tpm2-public-key=/.extra/tpm2-pcr-public-key.pem --tpm2-public-key-pcrs=11 "
    assert enrols in text
    assert text.index("cp /.extra/tpm2-pcr-signature.json /run/systemd/") < text.index("--token-only")
    plain, _ = initrd_script(TpmUnlock((7, 11, 12)))
    assert ".extra" not in plain


def test_the_script_asks_by_plymouth_once_the_tpm_is_enrolled() -> None:
    text, members = initrd_script(TpmUnlock((4, 7, 8, 9), plymouth=True))
    graphical, _, plain = text.partition("exit 0\nfi\nuntil unlock --tries 1")
    assert plain
    # What the TPM said is in the journal alone.
    assert graphical.index("--token-only") < graphical.index(">/dev/kmsg") < graphical.index("ask-for-password")
    assert "The disk was not unlocked" not in graphical
    assert '[ -z "" ] || splash plymouth quit\n        fi' in graphical
    assert {f"osgates/{name}" for name in TPM_STACK} < members
    weak, _ = initrd_script(TpmUnlock((4, 7, 8, 9), plymouth=True), way_in="shell")
    quits = weak.index('[ -z "shell" ] || splash plymouth quit')
    assert quits < weak.index("    /bin/sh\n", quits) < weak.index("    done\n", quits)


@pytest.mark.parametrize(
    ("opens", "pings", "said"),
    [
        # By the TPM; at the second passphrase; by the text console, where Plymouth does not answer or goes away.
        ("tpm", "00", ["show-splash", "quit"]),
        ("2", "0000", ["show-splash", "ping", "ask", "display-message", "ping", "ask", "quit"]),
        ("text", "1", ["show-splash", "ping", "quit", "text"]),
        ("text", "01", ["show-splash", "ping", "ask", "display-message", "ping", "quit", "text"]),
    ],
)
def test_the_script_ends_whatever_becomes_of_plymouth(
    opens: str, pings: str, said: list[str], tmp_path: Path
) -> None:
    """The part after the TPM was found to be enrolled, with programs that are played."""
    text, _ = initrd_script(TpmUnlock((7,), plymouth=True))
    start, end = text.index("# The first boot asks"), text.index('if [ -z "$tpm" ]; then\n    printf')
    part = (
        text[start:end].replace("/dev/kmsg", str(tmp_path / "kmsg")).replace("/run/plymouth", str(tmp_path / "run"))
    )
    played = f"""opens={opens}
pings={pings}
tpm=enrolled
log() {{ echo "$1" >>{tmp_path}/log; }}
splash() {{
    case "$*" in
        *--show-splash) log show-splash ;;
        *--ping) log ping; pinged=${{pings%"${{pings#?}}"}}; pings=${{pings#?}}; return "$pinged" ;;
        *ask-for-password*) log ask ;;
        *display-message*) log display-message ;;
        *quit) log quit ;;
    esac
}}
unlock() {{
    case "$*" in
        *--token-only*) [ "$opens" = tpm ] ;;
        *--key-file*) echo x >>{tmp_path}/tries; [ "$(wc -l <{tmp_path}/tries)" = "$opens" ] ;;
        *) log text ;;
    esac
}}
"""
    subprocess.run(["sh"], input=(played + part).encode(), check=True, timeout=20)
    assert (tmp_path / "log").read_text().split() == said


def test_the_script_asks_for_the_pin_and_knows_it_not() -> None:
    text, _ = initrd_script(TpmUnlock((4, 7), pin=True))
    assert text.index("--token-only --token-type systemd-tpm2 --tries 1") < text.index("until unlock --tries 1")
    assert "--tpm2-pcrs=4+7 --tpm2-with-pin=yes" in text
    assert text.index("export NEWPIN") < text.index("--tpm2-with-pin=yes")
    assert load_disk_file().pin not in text
    # Its prompt is written to standard error.
    assert "2>&1" not in text


def test_weakened_machines_are_for_the_gate_tpm() -> None:
    names = variant_names("tpm")
    assert names[:3] == ("pcr7-only", "tpm-blank", "tpm-shell")
    assert {load_disk_file().named(name).expects.subject for name in names} <= {*tampers(), "untampered-1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tpm", "--weak", "luks1"], "leave --tpm out"),
        (["--weak", "tpm-blank"], "add --tpm"),
        (["--pin"], "add --tpm"),
        (["--tpm", "--pin", "--weak", "tpm-blank"], "leave --weak out"),
        (["--plymouth"], "add --tpm"),
        (["--tpm", "--pin", "--plymouth"], "leave --pin out"),
    ],
)
def test_a_weakness_of_the_other_gate(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-disk", *arguments]) == 4
    assert said in capsys.readouterr().err


def test_a_machine_is_made_in_a_new_directory(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file").touch()
    with pytest.raises(UsageError, match="is there already, and not empty"):
        build_demo_machine(tmp_path / "iso", tmp_path / "here", lambda stage, done: None, cast("Host", None))
    with pytest.raises(UsageError, match="enrolled by nobody"):
        build_demo_machine(
            tmp_path / "iso", tmp_path / "new", lambda stage, done: None, cast("Host", None), "tpm-blank", pin=True
        )
    for tpm, pin in ((False, False), (True, True)):
        with pytest.raises(UsageError, match="opens without a PIN"):
            build_demo_disk(
                tmp_path / "iso", tmp_path / "d", lambda stage, done: None, tpm=tpm, pin=pin, plymouth=True
            )


def test_the_profile_of_the_machine_knows_its_secrets() -> None:
    spec = load_disk_file()
    policy = loader.load(loader.find("demo-tpm-pin")).policy("tpm")
    assert (policy.pin, policy.passphrase, policy.pcrs) == (spec.pin, spec.passphrase, spec.pcrs)
    assert {"wrong-pin", "pin-lockout"} < set(policy.rows())


def test_a_machine_that_asks_on_its_screen_names_it_last() -> None:
    given = ("live-media=/dev/mapper/root", "console=tty0", "console=ttyS0,115200")
    assert load_disk_file().parameters == given
    assert on_screen(given) == ("live-media=/dev/mapper/root", "console=ttyS0,115200", "console=tty0")
