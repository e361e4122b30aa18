"""Planted faults: their definitions, and what is pure in planting them."""

from __future__ import annotations

import difflib
import io
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from pytest_osgates.demo import fault_names, load_definition, load_fault
from pytest_osgates.demo.definition import DEFINITION
from pytest_osgates.demo.fault import change_parameters, image_epoch, remaster_arguments
from pytest_osgates.vm.errors import ImageError, UsageError

TREE = DEFINITION.parent / "tree"


@pytest.mark.parametrize("name", fault_names())
def test_a_shipped_fault_is_valid(name: str) -> None:
    fault = load_fault(name)
    assert fault.name == name
    assert len(fault.file.title) > 10
    assert fault.layer(1) if fault.has_files else fault.changes_parameters
    for path in fault.tree.rglob("*"):
        if path.is_file():
            assert "planted fault" in path.read_text().lower() or path.parent.name.endswith(".d")
            assert "\\" not in path.name


@pytest.mark.parametrize("name", fault_names())
def test_a_link_of_a_shipped_fault_leads_to_one_of_its_files_or_of_the_demos(name: str) -> None:
    fault = load_fault(name)
    for link, target in fault.file.symlinks.items():
        if target.startswith("/"):
            continue  # /dev/null, or nowhere, on purpose
        leads_to = [
            tree / PurePosixPath(link).parent.parent / target.removeprefix("../") for tree in (fault.tree, TREE)
        ]
        assert any(path.is_file() for path in leads_to)


@pytest.mark.parametrize("name", [name for name in fault_names() if load_fault(name).file.expects.gate == "settings"])
def test_what_a_shipped_fault_changes_in_the_demos_files_is_little(name: str) -> None:
    """A copy of a file in the base that was not kept up with it would be a second fault."""
    fault = load_fault(name)
    for path in (path for path in fault.tree.rglob("*") if path.is_file()):
        base = TREE / path.relative_to(fault.tree)
        if base.is_file():
            ours, theirs = path.read_text().splitlines(), base.read_text().splitlines()
            changed = [line for line in difflib.ndiff(theirs, ours) if line.startswith(("- ", "+ "))]
            assert len(changed) <= 3, changed


def test_a_layer_has_attributes_and_takes_files_away(tmp_path: Path) -> None:
    text = 'removed = ["etc/gone"]\nxattrs = { "etc/a" = { "security.capability" = "0100000200ff" } }\n'
    directory = fault_dir(tmp_path / "mine", text)
    (directory / "tree/etc").mkdir(parents=True)
    (directory / "tree/etc/a").write_text("x")
    with tarfile.open(fileobj=io.BytesIO(load_fault(directory).layer(1))) as archive:
        found = {member.name: member for member in archive}
    assert set(found) == {"etc", "etc/a", "etc/gone"}
    gone = found["etc/gone"]
    assert (gone.ischr(), gone.devmajor, gone.devminor) == (True, 0, 0)
    value = found["etc/a"].pax_headers["SCHILY.xattr.security.capability"]
    assert value.encode("utf-8", "surrogateescape") == bytes.fromhex("0100000200ff")


def test_an_attribute_of_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text = 'removed = ["etc/gone"]\nxattrs = { "etc/a" = { "security.capability" = "00" } }\n'
    with pytest.raises(UsageError, match=r"etc/a"):
        load_fault(fault_dir(tmp_path / "mine", text)).layer(1)


def test_the_faults_that_the_gates_are_tried_on_are_there() -> None:
    assert set(fault_names()) >= {
        *("failing-unit", "late-failing-unit", "restarting-unit", "kernel-panic"),
        *("weak-sysctl", "unknown-parameter", "emergency", "no-ready"),
    }


def test_a_fault_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"(?s)nonesuch.*failing-unit"):
        load_fault("nonesuch")


def fault_dir(where: Path, text: str) -> Path:
    where.mkdir()
    (where / "fault.toml").write_text(
        f'title = "A fault"\nexpects = {{ gate = "boot", rule = "r", subject = "s" }}\n{text}'
    )
    return where


def test_a_fault_in_any_directory(tmp_path: Path) -> None:
    fault = load_fault(fault_dir(tmp_path / "mine", 'cmdline_append = ["a=1", "b"]'))
    assert fault.file.parameters == ("a=1", "b")
    assert not fault.has_files


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine", "", "changes nothing"),
        ("My Fault", 'cmdline_append = ["a"]', "name of a fault"),
        ("mine", "unknown = 1", "unknown"),
        ("mine", 'xattrs = { "a" = { "b" = "0g" } }', "xattrs"),
        ("mine", 'removed = ["/etc/x"]', "removed"),
        ("mine", 'cmdline_append = ["a b"]', "cmdline_append"),
        ("mine", 'symlinks = { "/etc/x" = "y" }', "symlinks"),
    ],
)
def test_what_is_wrong_with_a_fault_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_fault(fault_dir(tmp_path / name, text))


def test_parameters_are_appended_in_both_configurations() -> None:
    definition = load_definition()
    for text in definition.boot_configs().values():
        changed = change_parameters(text, ("extra=1", "more"))
        assert f"{definition.command_line} extra=1 more\n" in changed
        assert len(changed) == len(text) + len(" extra=1 more")


def test_parameters_are_dropped_in_both_configurations() -> None:
    definition = load_definition()
    for text in definition.boot_configs().values():
        changed = change_parameters(text, (), ("slab_nomerge",))
        assert changed == text.replace(" slab_nomerge", "")
        with pytest.raises(ImageError, match="slab_nomerg'"):
            change_parameters(text, (), ("slab_nomerg",))


def test_a_configuration_without_parameters_is_refused() -> None:
    with pytest.raises(ImageError):
        change_parameters("set timeout=1\n", ("a",))


def descriptor(date: bytes) -> bytes:
    sector = bytearray(2048)
    sector[:7] = b"\x01CD001\x01"
    sector[830 : 830 + len(date)] = date
    return bytes(16 * 2048) + bytes(sector)


def test_the_date_of_an_image(tmp_path: Path) -> None:
    iso = tmp_path / "x.iso"
    iso.write_bytes(descriptor(b"2026010100000000\0"))
    assert image_epoch(iso) == load_definition().source_date_epoch


@pytest.mark.parametrize("content", [b"", b"x" * 40000, descriptor(b"0000000000000000"), descriptor(b"\xff" * 16)])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    iso = tmp_path / "x.iso"
    iso.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.iso"):
        image_epoch(iso)


def test_golden_remaster_arguments(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(b"")
    assert remaster_arguments(Path("/b.iso"), Path("/o.iso"), [(layer, "live/zz.squashfs")], 0) == [
        *("xorriso", "-no_rc", "-abort_on", "FAILURE", "-return_with", "FAILURE", "32"),
        *("-indev", "/b.iso", "-outdev", "/o.iso", "-boot_image", "any", "replay"),
        *("-map", str(layer), "/live/zz.squashfs"),
        *("-chown", "0", "/live/zz.squashfs", "--", "-chgrp", "0", "/live/zz.squashfs", "--"),
        *("-volume_date", "all_file_dates", "1970010100000000", "-volume_date", "uuid", "1970010100000000"),
        "-commit",
    ]


def test_a_fault_may_be_several_findings() -> None:
    expects = load_fault("aa-script").file.expects
    script = "/usr/share/osgates-fault/serve"
    assert expects.findings == {("unconfined", script), ("unconfined", "/usr/bin/perl")}
    assert len(load_fault("weak-sysctl").file.expects.findings) == 1


def test_the_profiles_of_faults_are_the_demos_but_for_their_mode() -> None:
    """A copy that was not kept up with it would be a second fault."""
    ours = (load_fault("aa-complain").tree / "etc/apparmor.d/sshd").read_text()
    assert ours.replace(", complain)", ")") == (TREE / "etc/apparmor.d/sshd").read_text()
