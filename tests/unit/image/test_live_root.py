"""The live root: which layers, in which order, merged as overlayfs does."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_builders import Tar, hand_made, iso_with

from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.layers import LiveSystem
from pytest_osgates.image.rootfs import RootView, open_root, os_release, root_of
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError

LIMIT = 1 << 16


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Layers that each say their number in /etc/top."""
    tmp_path = tmp_path_factory.mktemp("layers")
    return [
        Tar()
        .directory("usr")
        .directory("etc")
        .file("etc/top", b"%d" % number)
        .squashfs(tmp_path / f"{number}")
        .read_bytes()
        for number in range(6)
    ]


def view_of(files: dict[str, bytes]) -> RootView:
    return root_of(IsoImage(hand_made(files)))


def stack(numbered: list[bytes], names: list[str], more: dict[str, bytes] | None = None) -> list[str]:
    """The layers, the lowest first, of an ISO that has layers with these names and whatever is in `more`."""
    view = view_of({**dict(zip(names, numbered, strict=False)), **(more or {})})
    paths = [layer.name.removeprefix("/") for layer in view.layers]
    assert view.read("/etc/top", LIMIT) == b"%d" % names.index(paths[-1])
    return [path.rpartition("/")[2] for path in paths]


def test_layers_lie_where_they_are_said_to(numbered: list[bytes], tmp_path: Path) -> None:
    iso = iso_with(tmp_path, {"live/filesystem.squashfs": numbered[3]})
    with open_root(iso) as view:
        assert view.system is LiveSystem.LIVE_BOOT
        (only,) = view.layers
        assert iso.read_bytes()[only.offset : only.offset + only.size] == numbered[3]
        assert view.read("/etc/top", LIMIT) == b"3"


def test_live_boot_stacks_in_the_order_of_the_names(numbered: list[bytes]) -> None:
    names = ["live/filesystem.squashfs", "live/zz.squashfs", "live/Upper.squashfs", "live/.hidden.squashfs"]
    assert stack(numbered, names) == ["Upper.squashfs", "filesystem.squashfs", "zz.squashfs"]


def test_live_boot_stacks_what_its_module_file_lists(numbered: list[bytes]) -> None:
    names = ["live/a.squashfs", "live/b.squashfs", "live/c.squashfs"]
    listed = {"live/filesystem.module": b"c.squashfs missing.squashfs\na.squashfs\n"}
    assert stack(numbered, names, listed) == ["c.squashfs", "a.squashfs"]


def test_live_boot_with_a_layer_of_another_kind_is_an_error(numbered: list[bytes]) -> None:
    with pytest.raises(ImageError, match=r"live-boot stacks /live/b\.ext4"):
        stack(numbered, ["live/a.squashfs"], {"live/b.ext4": b"x"})


UBUNTU = [
    f"casper/minimal{rest}.squashfs"
    for rest in ("", ".de", ".standard", ".standard.de", ".standard.live", ".enhanced-secureboot")
]


def test_casper_stacks_the_live_session(numbered: list[bytes]) -> None:
    assert stack(numbered, UBUNTU) == [
        "minimal.squashfs",
        "minimal.standard.squashfs",
        "minimal.standard.live.squashfs",
    ]


def test_casper_stacks_what_the_boot_menu_names(numbered: list[bytes]) -> None:
    menu = b"linux /casper/vmlinuz layerfs-path=/cdrom/casper/minimal.standard.de.squashfs quiet\n"
    assert stack(numbered, UBUNTU, {"boot/grub/grub.cfg": menu}) == [
        "minimal.squashfs",
        "minimal.standard.squashfs",
        "minimal.standard.de.squashfs",
    ]


def test_casper_without_layers_stacks_all(numbered: list[bytes]) -> None:
    assert stack(numbered, ["casper/filesystem.squashfs", "casper/aaa.squashfs"]) == [
        "aaa.squashfs",
        "filesystem.squashfs",
    ]


def test_casper_does_not_guess(numbered: list[bytes]) -> None:
    with pytest.raises(ImageError, match="several stacks"):
        stack(numbered, ["casper/a.squashfs", "casper/a.b.squashfs", "casper/a.c.squashfs"])


def test_casper_with_a_menu_that_names_what_is_not_there(numbered: list[bytes]) -> None:
    with pytest.raises(ImageError, match="'b', which is not in /casper"):
        stack(numbered, ["casper/a.squashfs"], {"boot/grub/grub.cfg": b"layerfs-path=b.squashfs\n"})


def test_dracut_with_a_plain_squashfs(numbered: list[bytes]) -> None:
    view = view_of({"LiveOS/squashfs.img": numbered[2]})
    assert view.system is LiveSystem.DRACUT
    assert view.read("/etc/top", LIMIT) == b"2"


def test_dracut_with_an_ext4_image_inside_says_so(tmp_path: Path) -> None:
    ext4 = bytes(1080) + b"\x53\xef" + bytes(3000)
    image = Tar().directory("LiveOS").file("LiveOS/rootfs.img", ext4).squashfs(tmp_path / "outer.layer")
    wanted = "its root is an ext4 image inside squashfs: this version cannot read it"
    with pytest.raises(ImageError, match=wanted) as caught:
        view_of({"LiveOS/squashfs.img": image.read_bytes()})
    assert caught.value.remedy == "name the distro with --iso-distro"


@pytest.mark.parametrize(
    ("name", "contents", "wanted"),
    [
        ("LiveOS/squashfs.img", bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(5000), "its root is an EROFS file system"),
        ("LiveOS/rootfs.img", bytes(1080) + b"\x53\xef", "the disk image /LiveOS/rootfs.img"),
        ("live/filesystem.squashfs", b"nonsense" * 100, "its root is text: this version reads only squashfs"),
        ("live/filesystem.squashfs", b"", "cannot be read as one"),
        ("live/filesystem.squashfs", b"hsqs" + bytes(20), "cut short: 24 bytes"),
        ("live/filesystem.squashfs", b"hsqs" + bytes(200), "squashfs version 0.0"),
        ("install.amd/vmlinuz", b"", "an installer without a live system"),
        ("README", b"", "no live ISO"),
    ],
)
def test_roots_that_cannot_be_read_are_explained(name: str, contents: bytes, wanted: str) -> None:
    with pytest.raises(ImageError, match=wanted) as caught:
        view_of({name: contents})
    assert caught.value.remedy


def test_dracut_without_a_root_inside(tmp_path: Path) -> None:
    image = Tar().file("README", b"").squashfs(tmp_path / "outer.layer")
    with pytest.raises(ImageError, match="no root"):
        view_of({"LiveOS/squashfs.img": image.read_bytes()})


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that do everything to each other that overlayfs knows."""
    tmp_path = tmp_path_factory.mktemp("merged")
    lower = Tar()
    for name in ("both", "opaque", "gone", "covered", "deep", "deep/er"):
        lower.directory(name).file(f"{name}/lower", b"lower").file(f"{name}/common", b"lower")
    lower.file("file", b"lower").file("removed", b"lower").file("becomes-dir", b"lower").device("null", 1, 3)
    lower.link("link-down", "both/lower").link("replaced", "both/lower").file("below", b"target")
    upper = Tar().directory("both").file("both/upper", b"upper").file("both/common", b"upper")
    upper.directory("opaque", {"trusted.overlay.opaque": "y"}).file("opaque/upper", b"upper")
    upper.whiteout("gone").whiteout("removed").whiteout("never-was").file("covered", b"now a file")
    upper.directory("becomes-dir").file("becomes-dir/upper", b"upper").file("file", b"upper")
    upper.directory("deep").directory("deep/er").whiteout("deep/er/lower").link("link-up", "below")
    upper.link("replaced", "both/upper").link("into", "deep/../both")
    return iso_with(
        tmp_path,
        {
            "live/1.squashfs": lower.squashfs(tmp_path / "lower.layer"),
            "live/2.squashfs": upper.squashfs(tmp_path / "upper.layer", "-comp", "zstd"),
        },
    )


@pytest.mark.parametrize(
    ("path", "contents"),
    [
        ("/both/lower", b"lower"),
        ("/both/upper", b"upper"),
        ("/both/common", b"upper"),
        ("/file", b"upper"),
        ("/opaque/upper", b"upper"),
        ("/opaque/lower", None),
        ("/gone", None),
        ("/gone/lower", None),
        ("/removed", None),
        ("/never-was", None),
        ("/covered", b"now a file"),
        ("/covered/lower", None),
        ("/becomes-dir/upper", b"upper"),
        ("/deep/lower", b"lower"),
        ("/deep/er/lower", None),
        ("/deep/er/common", b"lower"),
        ("/link-down", b"lower"),
        ("/link-up", b"target"),
        ("/replaced", b"upper"),
        ("/into/common", b"upper"),
        ("/into/lower", b"lower"),
    ],
)
def test_layers_merge(path: str, contents: bytes | None, merged: Path) -> None:
    with open_root(merged) as view:
        assert view.read(path, LIMIT) == contents
        assert view.exists(path) == (contents is not None)


def test_merged_directories_list_what_is_visible(merged: Path) -> None:
    with open_root(merged) as view:
        assert view.list_dir("/both") == ("common", "lower", "upper")
        assert view.list_dir("/opaque") == ("upper",)
        assert view.list_dir("/deep/er") == ("common",)
        assert view.list_dir("/becomes-dir") == ("upper",)
        assert view.list_dir("/file") is None
        assert view.list_dir("/gone") is None
        top = view.list_dir("/")
        assert top is not None
        assert "null" in top
        assert not {"gone", "removed", "never-was"} & set(top)


def test_what_is_no_file_is_not_read(merged: Path) -> None:
    with open_root(merged) as view:
        with pytest.raises(ImageError, match="'/both' is a directory, not a regular file"):
            view.read("/both", LIMIT)
        with pytest.raises(ImageError, match="'/null' is a character device"):
            view.read("/null", LIMIT)
        with pytest.raises(ImageError, match="more than the 3 expected"):
            view.read("/file", 3)
        link = view.lookup("/link-up", follow=False)
        assert link is not None
        assert link.kind is FileKind.SYMLINK


def test_a_renamed_directory_is_an_error(tmp_path: Path) -> None:
    lower = Tar().directory("old").file("old/f", b"x").squashfs(tmp_path / "1.layer")
    upper = Tar().directory("new", {"trusted.overlay.redirect": "old"}).squashfs(tmp_path / "2.layer")
    view = view_of({"live/1.squashfs": lower.read_bytes(), "live/2.squashfs": upper.read_bytes()})
    with pytest.raises(ImageError, match="redirect_dir"):
        view.read("/new/f", LIMIT)


def os_release_root(tmp_path: Path, etc: str | None, usr: str | None, link: str | None = None) -> RootView:
    tar = Tar().directory("etc").directory("usr").directory("usr/lib")
    if etc is not None:
        tar.file("etc/os-release", etc.encode())
    if link is not None:
        tar.link("etc/os-release", link)
    if usr is not None:
        tar.file("usr/lib/os-release", usr.encode())
    return view_of({"live/filesystem.squashfs": tar.squashfs(tmp_path / "root.layer").read_bytes()})


@pytest.mark.parametrize(
    ("etc", "usr", "link", "wanted"),
    [
        ("ID=etc\n", "ID=usr\nNAME=x\n", None, {"ID": "etc"}),
        (None, "ID=usr\n", None, {"ID": "usr"}),
        (None, "ID=usr\n", "../usr/lib/os-release", {"ID": "usr"}),
        (None, "ID=usr\n", "/nowhere", {"ID": "usr"}),
    ],
)
def test_os_release_is_the_first_that_is_there(
    etc: str | None, usr: str | None, link: str | None, wanted: dict[str, str], tmp_path: Path
) -> None:
    assert os_release(os_release_root(tmp_path, etc, usr, link)) == wanted


def test_no_os_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="neither /etc/os-release nor /usr/lib/os-release"):
        os_release(os_release_root(tmp_path, None, None))


def test_an_endless_os_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than"):
        os_release(os_release_root(tmp_path, "#" * 70_000, None))
