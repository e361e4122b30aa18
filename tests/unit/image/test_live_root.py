"""The live root: which layers, in which order, merged as overlayfs does."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_builders import Tar, iso_with

from pytest_osgates.image.layers import LiveSystem
from pytest_osgates.image.rootfs import open_root, os_release
from pytest_osgates.image.tree import FileKind
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.process import run

LIMIT = 1 << 16


def layer(tmp_path: Path, name: str, **files: str) -> Path:
    """A squashfs with the given files in /etc, each with the given contents."""
    tar = Tar().directory("usr").directory("etc")
    for file, contents in files.items():
        tar.file(f"etc/{file}", contents.encode())
    return tar.squashfs(tmp_path / f"{name}.layer")


def stacked(tmp_path: Path, names: list[str], **more: bytes) -> Path:
    """An ISO whose layers each say their own name in /etc/top and /etc/<number>."""
    files: dict[str, bytes | Path] = dict(more)
    for number, name in enumerate(names):
        files[name] = layer(tmp_path, str(number), top=name, **{f"in{number}": name})
    return iso_with(tmp_path, files)


def layers_of(iso: Path) -> list[str]:
    with open_root(iso) as view:
        top = view.read("/etc/top", LIMIT)
        names = [layer.name.rpartition("/")[2] for layer in view.layers]
        assert top is not None
        assert top.decode().rpartition("/")[2] == names[-1]
        return names


def test_layers_lie_where_they_are_said_to(tmp_path: Path) -> None:
    iso = stacked(tmp_path, ["live/filesystem.squashfs"])
    with open_root(iso) as view:
        assert view.system is LiveSystem.LIVE_BOOT
        (only,) = view.layers
        contents = (tmp_path / "0.layer").read_bytes()
        assert only.size == len(contents)
        assert iso.read_bytes()[only.offset : only.offset + only.size] == contents


def test_live_boot_stacks_in_the_order_of_the_names(tmp_path: Path) -> None:
    names = ["live/filesystem.squashfs", "live/zz.squashfs", "live/Upper.squashfs", "live/.hidden.squashfs"]
    assert layers_of(stacked(tmp_path, names)) == ["Upper.squashfs", "filesystem.squashfs", "zz.squashfs"]


def test_live_boot_stacks_what_its_module_file_lists(tmp_path: Path) -> None:
    names = ["live/a.squashfs", "live/b.squashfs", "live/c.squashfs"]
    listed = {"live/filesystem.module": b"c.squashfs missing.squashfs\na.squashfs\n"}
    assert layers_of(stacked(tmp_path, names, **listed)) == ["c.squashfs", "a.squashfs"]


def test_live_boot_with_a_layer_of_another_kind_is_an_error(tmp_path: Path) -> None:
    iso = stacked(tmp_path, ["live/a.squashfs"], **{"live/b.ext4": b"x"})
    with pytest.raises(ImageError, match=r"live-boot stacks /live/b\.ext4"), open_root(iso):
        pass


UBUNTU = [
    f"casper/minimal{rest}.squashfs"
    for rest in ("", ".de", ".standard", ".standard.de", ".standard.live", ".enhanced-secureboot")
]


def test_casper_stacks_the_live_session(tmp_path: Path) -> None:
    assert layers_of(stacked(tmp_path, UBUNTU)) == [
        "minimal.squashfs",
        "minimal.standard.squashfs",
        "minimal.standard.live.squashfs",
    ]


def test_casper_stacks_what_the_boot_menu_names(tmp_path: Path) -> None:
    menu = b"linux /casper/vmlinuz layerfs-path=/cdrom/casper/minimal.standard.de.squashfs quiet\n"
    assert layers_of(stacked(tmp_path, UBUNTU, **{"boot/grub/grub.cfg": menu})) == [
        "minimal.squashfs",
        "minimal.standard.squashfs",
        "minimal.standard.de.squashfs",
    ]


def test_casper_without_layers_stacks_all(tmp_path: Path) -> None:
    assert layers_of(stacked(tmp_path, ["casper/filesystem.squashfs", "casper/aaa.squashfs"])) == [
        "aaa.squashfs",
        "filesystem.squashfs",
    ]


def test_casper_does_not_guess(tmp_path: Path) -> None:
    iso = stacked(tmp_path, ["casper/a.squashfs", "casper/a.b.squashfs", "casper/a.c.squashfs"])
    with pytest.raises(ImageError, match="several stacks"), open_root(iso):
        pass


def test_casper_with_a_menu_that_names_what_is_not_there(tmp_path: Path) -> None:
    iso = stacked(tmp_path, ["casper/a.squashfs"], **{"boot/grub/grub.cfg": b"layerfs-path=b.squashfs\n"})
    with pytest.raises(ImageError, match="'b', which is not in /casper"), open_root(iso):
        pass


def test_dracut_with_a_plain_squashfs(tmp_path: Path) -> None:
    with open_root(stacked(tmp_path, ["LiveOS/squashfs.img"])) as view:
        assert view.system is LiveSystem.DRACUT
        assert view.read("/etc/top", LIMIT) == b"LiveOS/squashfs.img"


def test_dracut_with_an_ext4_image_inside_says_so(tmp_path: Path) -> None:
    ext4 = bytes(1080) + b"\x53\xef" + bytes(3000)
    image = Tar().directory("LiveOS").file("LiveOS/rootfs.img", ext4).squashfs(tmp_path / "outer.layer")
    iso = iso_with(tmp_path, {"LiveOS/squashfs.img": image})
    wanted = "its root is an ext4 image inside squashfs: this version cannot read it"
    with pytest.raises(ImageError, match=wanted) as caught, open_root(iso):
        pass
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
def test_roots_that_cannot_be_read_are_explained(name: str, contents: bytes, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=wanted) as caught, open_root(iso_with(tmp_path, {name: contents})):
        pass
    assert caught.value.remedy


def test_dracut_without_a_root_inside(tmp_path: Path) -> None:
    image = Tar().file("README", b"").squashfs(tmp_path / "outer.layer")
    with pytest.raises(ImageError, match="no root"), open_root(iso_with(tmp_path, {"LiveOS/squashfs.img": image})):
        pass


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
    iso = iso_with(tmp_path, {"live/1.squashfs": lower, "live/2.squashfs": upper})
    with open_root(iso) as view, pytest.raises(ImageError, match="redirect_dir"):
        view.read("/new/f", LIMIT)


def os_release_root(tmp_path: Path, etc: str | None, usr: str | None, link: str | None = None) -> Path:
    tar = Tar().directory("etc").directory("usr").directory("usr/lib")
    if etc is not None:
        tar.file("etc/os-release", etc.encode())
    if link is not None:
        tar.link("etc/os-release", link)
    if usr is not None:
        tar.file("usr/lib/os-release", usr.encode())
    return iso_with(tmp_path, {"live/filesystem.squashfs": tar.squashfs(tmp_path / "root.layer")})


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
    with open_root(os_release_root(tmp_path, etc, usr, link)) as view:
        assert os_release(view) == wanted


def test_no_os_release_is_an_error(tmp_path: Path) -> None:
    with (
        open_root(os_release_root(tmp_path, None, None)) as view,
        pytest.raises(ImageError, match="neither /etc/os-release nor /usr/lib/os-release"),
    ):
        os_release(view)


def test_an_endless_os_release_is_an_error(tmp_path: Path) -> None:
    with (
        open_root(os_release_root(tmp_path, "#" * 70_000, None)) as view,
        pytest.raises(ImageError, match="more than"),
    ):
        os_release(view)


def test_random_paths_agree_with_unsquashfs(tmp_path: Path, squashfs_path: Path) -> None:
    iso = iso_with(tmp_path, {"live/filesystem.squashfs": squashfs_path})
    with open_root(iso) as view:
        for number in (7, 311, 598):
            path = f"many/file-{number:03}-{'n' * (number % 50)}"
            cat = run(["unsquashfs", "-cat", str(squashfs_path), path], timeout=60).stdout
            assert view.read(path, LIMIT) == cat
