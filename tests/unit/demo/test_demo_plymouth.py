"""Plymouth's files for an initrd, from a tree as Debian's packages unpack to."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pytest_osgates.demo import plymouth
from pytest_osgates.demo.disk import on_screen
from pytest_osgates.vm.errors import HostError

LIBRARIES = "usr/lib/x86_64-linux-gnu"
NAMES = (
    *("usr/sbin/plymouthd", "usr/bin/plymouth", "usr/share/plymouth/plymouthd.defaults"),
    *("usr/share/plymouth/debian-logo.png", "usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
    "usr/share/fonts/opentype/cantarell/Cantarell-VF.otf",
    *(f"{LIBRARIES}/plymouth/{name}" for name in ("two-step.so", "text.so", "details.so", "label-pango.so")),
    *(f"{LIBRARIES}/plymouth/renderers/{name}" for name in ("drm.so", "frame-buffer.so")),
    *(f"usr/share/plymouth/themes/{name}/{name}.plymouth" for name in ("spinner", "text", "details")),
    *("usr/share/plymouth/themes/spinner/bullet.png", f"{LIBRARIES}/libply.so.5"),
)
LISTED = f"""  linux-vdso.so.1 (0x7ffc)
  libply.so.5 => {LIBRARIES}/libply.so.5 (0x7f00)
  /lib64/ld-linux-x86-64.so.2 => /tmp/x/ld-linux-x86-64.so.2 (0x7f01)
"""


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What they hold, and what their loader says of every program is in the environment (`SAYS`)."""
    names = list(NAMES)

    def unpack(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        loader = root / "usr/lib64/ld-linux-x86-64.so.2"
        loader.parent.mkdir(parents=True)
        loader.write_text('#!/bin/sh\nprintf %b "$SAYS"\n')
        loader.chmod(0o755)

    monkeypatch.setattr(plymouth, "_unpack", unpack)
    return names


def members(scratch: Path, says: str) -> dict[str, tuple[int, bytes]]:
    return plymouth.plymouth_members(scratch, {"PATH": os.environ["PATH"], "SAYS": says})


def test_programs_and_libraries_lie_together_and_the_rest_where_plymouth_looks(
    packages: list[str], tmp_path: Path
) -> None:
    found = members(tmp_path, LISTED)
    executable = {name for name, (mode, _) in found.items() if mode == 0o755}
    assert executable == {
        f"plymouth/{name}" for name in ("plymouthd", "plymouth", "libply.so.5", "ld-linux-x86-64.so.2")
    }
    assert found["plymouth/libply.so.5"][1] == f"{LIBRARIES}/libply.so.5".encode()
    placed = set(NAMES) - {"usr/sbin/plymouthd", "usr/bin/plymouth", f"{LIBRARIES}/libply.so.5"}
    assert placed | {"etc/plymouth/plymouthd.conf", "etc/fonts/fonts.conf"} == set(found) - executable
    assert b"Theme=spinner" in found["etc/plymouth/plymouthd.conf"][1]


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("    libdrm.so.2 => not found\n", r"libdrm.so.2, which /usr/sbin/plymouthd loads, is in none"),
        # A loader looks at the host's directories, too.
        (
            f"{LISTED}  libm.so.6 => /lib/libm.so.6 (0x7f02)\n",
            r"libm.so.6, which /usr/sbin/plymouthd loads, is in none",
        ),
        ("", "cannot be found out"),
    ],
)
def test_what_no_package_has_is_named(says: str, said: str, packages: list[str], tmp_path: Path) -> None:
    with pytest.raises(HostError, match=said):
        members(tmp_path, says)


def test_a_blank_and_a_colon_in_the_path(packages: list[str], tmp_path: Path) -> None:
    (tmp_path / "my machines: all").mkdir()
    assert "plymouth/libply.so.5" in members(tmp_path / "my machines: all", LISTED)


def test_a_link_of_a_package_to_a_file_of_the_host(packages: list[str], tmp_path: Path) -> None:
    name = "usr/share/plymouth/debian-logo.png"
    packages.remove(name)
    target = tmp_path / "plymouth" / name
    target.parent.mkdir(parents=True)
    target.symlink_to("/etc/passwd")
    with pytest.raises(HostError, match=r"no /usr/share/plymouth/debian-logo\.png"):
        members(tmp_path, LISTED)


@pytest.mark.parametrize(
    "name", ["usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "usr/share/plymouth/themes/text/text.plymouth"]
)
def test_packages_without_the_theme_or_the_font(name: str, packages: list[str], tmp_path: Path) -> None:
    packages.remove(name)
    with pytest.raises(HostError, match=f"no /{re.escape(name)}"):
        members(tmp_path, LISTED)


def test_its_parameters_come_before_the_console_that_asks() -> None:
    given = (*plymouth.PARAMETERS, *on_screen(("console=tty0", "console=ttyS0,115200")))
    assert given == ("plymouth.ignore-serial-consoles", "splash", "console=ttyS0,115200", "console=tty0")
