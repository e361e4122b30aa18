"""The demo's definition and tree: valid, without surprises, independent of how they were cloned."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.demo import load_definition
from pytest_osgates.demo.definition import DEFINITION, Definition, one_parameter, relative_path, tree_digest, tree_tar
from pytest_osgates.vm.errors import UsageError

TREE = DEFINITION.parent / "tree"


@pytest.fixture(scope="module")
def demo() -> Definition:
    return load_definition()


def members(content: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: member for member in archive}


def test_every_choice_has_its_reason(demo: Definition) -> None:
    for entry in (*demo.packages, *demo.media, *demo.parameters, *demo.units, *demo.files, *demo.values):
        assert len(entry.reason) > 10


def test_no_package_is_named_twice(demo: Definition) -> None:
    names = [name for group in demo.packages for name in group.names]
    assert len(names) == len(set(names))


def test_there_is_no_serial_console(demo: Definition) -> None:
    text = DEFINITION.read_text() + "".join(
        path.read_text() for path in sorted(TREE.rglob("*")) if path.is_file() and "20-wired" not in path.name
    )
    assert not [p.text for p in demo.parameters if p.text.startswith("console=")]
    assert "ttyS" not in text
    assert "serial-getty" not in text


def test_both_boot_loaders_get_the_same_command_line(demo: Definition) -> None:
    configs = demo.boot_configs("extra=1")
    assert set(configs) == {"boot/grub/grub.cfg", "isolinux/isolinux.cfg"}
    for text in configs.values():
        assert f"{demo.command_line} extra=1\n" in text
        assert "@" not in text


def test_parameters_are_unique(demo: Definition) -> None:
    names = [parameter.text.split("=")[0] for parameter in demo.parameters]
    assert len(names) == len(set(names))


def test_os_release_agrees_with_the_definition(demo: Definition) -> None:
    lines = (TREE / "usr/lib/os-release").read_text().splitlines()
    values = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    assert values["ID"] == demo.name
    assert values["ID_LIKE"] == "debian"
    assert demo.title in values["PRETTY_NAME"]
    assert demo.title.endswith(values["VERSION_ID"])
    assert demo.suites[0].name == values["VERSION_CODENAME"]


def test_the_firewall_lets_nothing_in() -> None:
    text = (TREE / "etc/nftables.conf").read_text()
    assert "hook input priority filter; policy drop;" in text
    assert "dport" not in text


def test_ssh_is_off(demo: Definition) -> None:
    assert "ssh.service" in demo.unit_names("disable")
    assert "disable ssh.service" in (TREE / "etc/systemd/system-preset/10-osgates-demo.preset").read_text()


def test_the_tree_s_archive_does_not_know_how_it_was_cloned(tmp_path: Path) -> None:
    archives = []
    for umask, order in ((0o077, 1), (0o002, -1)):
        old = os.umask(umask)
        try:
            root = tmp_path / f"{umask}"
            for name in ("etc/b.conf", "etc/a/c.conf", "usr/d")[::order]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(name)
                os.utime(root / name, (umask, umask))
        finally:
            os.umask(old)
        archives.append(tree_tar(root, {"etc/a": 0o700}, {"etc/l": "../usr/d"}, 1000))
    assert archives[0] == archives[1]
    found = members(archives[0])
    assert {name: (info.mode, info.uid, info.gid, info.uname, info.mtime) for name, info in found.items()} == {
        "etc": (0o755, 0, 0, "", 1000),
        "etc/a": (0o700, 0, 0, "", 1000),
        "etc/a/c.conf": (0o644, 0, 0, "", 1000),
        "etc/b.conf": (0o644, 0, 0, "", 1000),
        "etc/l": (0o777, 0, 0, "", 1000),
        "usr": (0o755, 0, 0, "", 1000),
        "usr/d": (0o644, 0, 0, "", 1000),
    }
    assert found["etc/l"].linkname == "../usr/d"


def test_the_demo_s_tree_packs_with_the_modes_of_the_definition(demo: Definition) -> None:
    found = members(tree_tar(TREE, dict(demo.modes), dict(demo.symlinks), demo.source_date_epoch))
    assert found["etc/nftables.conf"].mode == 0o755
    assert found["etc/ssh/sshd_config.d/10-hardening.conf"].mode == 0o600
    assert found["etc/os-release"].linkname == "../usr/lib/os-release"
    assert all(not info.mode & 0o6022 for info in found.values() if not info.issym())


def test_a_mode_for_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="etc/gone"):
        tree_tar(tmp_path, {"etc/gone": 0o600}, {}, 1)


def test_a_symbolic_link_in_the_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="TOML"):
        tree_tar(tmp_path, {}, {}, 1)


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    definition = tmp_path / "definition.toml"
    definition.write_text("a = 1\n")
    seen = {tree_digest(definition)}
    (tmp_path / "tree").mkdir()
    for name, text in (("x", "1"), ("x", "2"), ("y", "2")):
        (tmp_path / "tree" / name).write_text(text)
        seen.add(tree_digest(definition))
    assert len(seen) == 4
    (tmp_path / "tree/x").chmod(0o600)
    assert tree_digest(definition) in seen


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nonsense", "not TOML"),
        ("schema = 2", "schema"),
        (DEFINITION.read_text().replace("title =", "titel ="), "titel"),
        (DEFINITION.read_text().replace('text = "quiet"', 'text = "quiet; reboot"'), "parameters"),
        (DEFINITION.read_text().replace('"etc/os-release" =', '"../os-release" ='), "symlinks"),
        (DEFINITION.read_text().replace('"ssh.socket"', '"$(reboot).socket"'), "units"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "definition.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=where):
        load_definition(path)


def test_a_definition_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        load_definition(tmp_path / "none.toml")


@given(st.text(max_size=40))
def test_paths_and_parameters_are_accepted_or_refused_cleanly(text: str) -> None:
    for check in (relative_path, one_parameter):
        try:
            accepted = check(text)
        except ValueError:
            continue
        assert accepted == text
        assert "\n" not in text
        assert ".." not in text.split("/") or check is one_parameter
