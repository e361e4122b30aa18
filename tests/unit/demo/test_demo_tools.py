"""What the builder asks of its host, and the command lines it gives."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from pytest_osgates.debian import LockedPackage
from pytest_osgates.demo import load_definition, tools
from pytest_osgates.demo.build import scratch_beside, tool_changes
from pytest_osgates.demo.media import volume_date, xorriso_arguments
from pytest_osgates.demo.root import as_root_of_its_own, bootstrap_arguments, squash_arguments
from pytest_osgates.demo.tools import environment, feed, subordinate_ids, with_own_mounts, with_umask
from pytest_osgates.vm.errors import CommandFailed, HostError, HostTimeout, MissingTool, UsageError
from pytest_osgates.vm.process import run


def test_subordinate_ids_are_counted_by_name_and_number() -> None:
    text = "ann:100000:65536\nbob:165536:65536\n1000:231072:10\nann:x:y\nbroken\n"
    assert subordinate_ids(text, "ann", 1000) == 65546
    assert subordinate_ids(text, "eve", 5) == 0


def test_a_user_who_cannot_build_is_told_what_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(getpass, "getuser", lambda: "nobody-of-this-name")
    with pytest.raises(HostError, match=r"(?s)nobody-of-this-name.*usermod --add-subuids"):
        tools.check_can_bootstrap()


def test_root_can_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tools.check_can_bootstrap()


def test_all_missing_programs_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(program: str) -> str:
        raise MissingTool(program)

    monkeypatch.setattr(tools, "which", absent)
    with pytest.raises(MissingTool, match="apt-get install squashfs-tools xorriso"):
        tools.need("xorriso", "mksquashfs")


def test_the_environment_has_nothing_of_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "TZ", "XORRISO_OPTIONS", "SQFS_OPTIONS"):
        monkeypatch.setenv(name, "strange")
    assert "strange" not in environment(7).values()
    assert environment(7)["SOURCE_DATE_EPOCH"] == "7"


def test_the_umask_is_fixed_for_the_child_only() -> None:
    old = os.umask(0o077)
    try:
        assert run(with_umask(["sh", "-c", "umask"]), timeout=10).text.strip() == "0022"
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(old)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's mmdebstrap has a namespace already")
def test_what_root_s_builder_mounts_ends_with_it(tmp_path: Path) -> None:
    if with_own_mounts(["true"]) == ["true"]:
        pytest.skip("this root may not make mount namespaces, and so not mount either")
    (tmp_path / "there").mkdir()
    script = f"mount -t tmpfs none '{tmp_path}/there' && touch '{tmp_path}/there/file' && kill -KILL $$"
    done = run(with_own_mounts(["sh", "-c", script]), timeout=20, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "there").is_mount()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_file_is_fed_to_a_program(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("content")
    copy = tmp_path / "out"
    feed(["dd", f"of={copy}"], source, timeout=20, env=environment(0), on_poll=lambda _: None)
    assert copy.read_text() == "content"
    with pytest.raises(CommandFailed, match="status 3"):
        feed(["sh", "-c", "echo why; exit 3"], source, timeout=20, env=environment(0), on_poll=lambda _: None)
    with pytest.raises(HostTimeout):
        feed(["sleep", "60"], source, timeout=0.1, env=environment(0), on_poll=lambda _: None)


def test_scratch_is_gone_after_a_failure(tmp_path: Path) -> None:
    def interrupted() -> None:
        with scratch_beside(tmp_path / "x.iso") as scratch:
            (scratch / "big").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"), scratch_beside(tmp_path / "no/x.iso"):
        pass


def test_other_tool_versions_are_said() -> None:
    (note,) = tool_changes({"xorriso": "1", "gone": "1", "same": "2"}, {"xorriso": "2", "new": "1", "same": "2"})
    assert "xorriso is 2 here and was 1" in note


def test_golden_bootstrap_arguments() -> None:
    definition = load_definition()
    package = LockedPackage(
        name="dash", version="1", architecture="amd64", filename="pool/d/dash_1_amd64.deb", sha256="0" * 64, size=1
    )
    argv = bootstrap_arguments(
        definition,
        [package],
        Path("/s/repo"),
        Path("/s/t.tar"),
        Path("/s/c s.sh"),
        Path("/s/out"),
        Path("/s/root.tar"),
    )
    assert argv[:5] == [
        *("mmdebstrap", "--variant=essential", "--format=tar", "--architectures=amd64", "--include=dash"),
    ]
    assert argv[-3:] == ["trixie", "/s/root.tar", "deb [trusted=yes] copy:///s/repo ./"]
    hooks = [word for word in argv if "-hook=" in word]
    assert hooks[:2] == ["--essential-hook=tar-in /s/t.tar /", "--customize-hook=tar-in /s/t.tar /"]
    assert hooks[-2:] == [
        "--customize-hook=copy-out /boot /var/lib/dpkg/status /s/out",
        "--customize-hook=sh -eu '/s/c s.sh' \"$1\"",
    ]


def test_golden_dates_of_the_medium() -> None:
    definition = load_definition()
    assert volume_date(definition.source_date_epoch) == "2026010100000000"
    argv = xorriso_arguments(definition, Path("/m"), Path("/b"), Path("/o"))
    assert "--modification-date=2026010100000000" in argv
    assert argv[-3:] == ["-o", "/o", "/m"]


def test_the_root_directory_of_a_layer_belongs_to_root_whoever_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = load_definition()
    assert "-all-root" in squash_arguments(Path("/o"), definition, 1, all_root=True)
    assert "-all-root" not in squash_arguments(Path("/o"), definition, 1, all_root=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert as_root_of_its_own(all_root=True) == []
    assert as_root_of_its_own(all_root=False)[0] == "unshare"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert as_root_of_its_own(all_root=False) == []
