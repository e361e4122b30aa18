"""Running Lynis: the observer's shell is run by a real sh, with a small program in Lynis's place."""

from __future__ import annotations

import io
import shlex
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from local_shell import gone, local_shell
from lynis_samples import Story

from pytest_osgates.evidence import Evidence
from pytest_osgates.model import State
from pytest_osgates.observers import lynis
from pytest_osgates.progress import ProgressLog
from pytest_osgates.tools import Tool
from pytest_osgates.vm.errors import HostError


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what says nothing at its end, a look takes its full time."""
    monkeypatch.setattr(lynis, "_LOOK", lynis._LOOK.replace(f"timeout {lynis.LOOK_SECONDS}", "timeout 1"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lynis.Place:
    (tmp_path / "channel").mkdir()
    (tmp_path / "evidence" / "inputs").mkdir(parents=True)
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(lynis, "PROFILE_PLACES", (str(tmp_path / "profiles"), str(tmp_path / "none")))
    return lynis.Place(
        local_shell(tmp_path / "channel"),
        State.LIVE,
        Evidence(tmp_path / "evidence"),
        ProgressLog(tmp_path / "progress.jsonl"),
    )


def tool(tmp_path: Path, script: str) -> Tool:
    """A package whose program is `script`; it gets Lynis's arguments."""
    tree = tmp_path / "package"
    for name, text in {
        "usr/sbin/lynis": script,
        "usr/share/lynis/include/functions": "# functions\n",
        "usr/share/lynis/db/tests.db": "A-1\n",
        "usr/share/lynis/db/languages/en": "x\n",
        "etc/lynis/default.prf": "quick=yes\n",
        "etc/lynis/plugins/plugin_x_phase1": "# x\n",
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tool("lynis", "3.1.4-1", "00", (), "test", tree, len(list(tree.rglob("*"))))


def telling(tmp_path: Path, story: Story, more: str = "") -> str:
    """A program that writes the story's log and report where Lynis is told to."""
    (tmp_path / "log").write_text(story.log())
    (tmp_path / "report").write_text(story.report())
    log, report = (shlex.quote(str(tmp_path / name)) for name in ("log", "report"))
    return f"cat {log} >out/log; cat {report} >out/report\n{more}"


def test_a_run_is_read_and_kept_and_nothing_is_left(place: lynis.Place, tmp_path: Path, story: Story) -> None:
    script = telling(tmp_path, story, 'echo "$@"; pwd; env\n')
    seen = lynis.observe(place, tool(tmp_path, script), 20)
    assert seen.status == 0
    assert (seen.log.points, seen.report.index, seen.altered, seen.guest_profiles) == (900, 100, (), ())
    assert len(seen.log.tests) == 450
    inputs = tmp_path / "evidence/inputs/lynis"
    assert (inputs / "live-log.txt").read_text() == story.log()
    assert (inputs / "live-report.txt").read_text() == story.report()
    printed = (inputs / "live-screen.txt").read_text()
    assert printed.startswith("audit system --usecwd --no-colors --quick --plugindir ./plugins --logfile /")
    # None of the caller's environment.
    assert {line.split("=")[0] for line in printed.splitlines()[2:]} <= {"PATH", "HOME", "TERM", "LANG", "PWD"}
    assert list((tmp_path / "channel").iterdir()) == []


def test_a_package_of_which_a_file_was_removed_is_not_run(tmp_path: Path) -> None:
    given = tool(tmp_path, "exit 0\n")
    (tmp_path / "package/etc/lynis/plugins/plugin_x_phase1").unlink()
    with pytest.raises(HostError, match="files were removed") as caught:
        lynis.tool_files(given)
    assert "cleans temporary directories" in str(caught.value)


def test_its_files_are_private_and_its_own_settings_among_them(place: lynis.Place, tmp_path: Path) -> None:
    files = lynis.tool_files(tool(tmp_path, "exit 0\n"))
    assert set(files) == {
        *("lynis", "include/functions", "db/tests.db", "db/languages/en", "default.prf", "custom.prf"),
        "plugins/plugin_x_phase1",
    }
    assert b"skip-upgrade-test=yes" in files["custom.prf"]
    assert b"skip-test" not in files["custom.prf"]
    with tarfile.open(fileobj=io.BytesIO(lynis.pack(files))) as archive:
        members = {member.name: member for member in archive}
    assert {"include", "db", "db/languages", "plugins"} <= set(members)
    assert all(member.mode & 0o077 == 0 and member.uid == 0 for member in members.values())


def test_the_guests_own_profiles_are_named_and_not_used(place: lynis.Place, tmp_path: Path, story: Story) -> None:
    (tmp_path / "profiles/custom.prf").write_text("skip-test=FILE-7524\n")
    (tmp_path / "profiles/odd\nname\x1b[31m.prf").write_text("")
    (tmp_path / "profiles/README").write_text("")
    seen = lynis.observe(place, tool(tmp_path, telling(tmp_path, story)), 20)
    assert len(seen.guest_profiles) == 2
    assert str(tmp_path / "profiles/custom.prf") in seen.guest_profiles
    assert all(name.isprintable() for name in seen.guest_profiles)


def test_lynis_killed_half_way_is_seen(place: lynis.Place, tmp_path: Path, story: Story) -> None:
    (tmp_path / "half").write_text(story.log()[:5000])
    seen = lynis.observe(place, tool(tmp_path, f"cat {tmp_path}/half >out/log; kill -KILL $$\n"), 20)
    assert seen.status == 137
    assert not seen.report.finished
    assert seen.log.tests


@pytest.mark.usefixtures("short_looks")
def test_its_waiter_killed_with_it_is_seen(place: lynis.Place, tmp_path: Path) -> None:
    seen = lynis.observe(place, tool(tmp_path, 'kill -KILL "$(cat out/pid)" $$\n'), 20)
    assert seen.status is None
    assert "gone" in seen.detail


@pytest.mark.usefixtures("short_looks")
def test_one_that_never_ends_is_stopped_at_the_deadline(place: lynis.Place, tmp_path: Path) -> None:
    program = tool(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 600\n")
    seen = lynis.observe(place, program, 0.5)
    assert seen.status is None
    assert "deadline_s" in seen.detail
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_end_is_noticed_at_once(place: lynis.Place, tmp_path: Path, story: Story) -> None:
    gate = threading.Event()
    seen = []

    def watch() -> None:
        seen.append(lynis.observe(place, tool(tmp_path, telling(tmp_path, story)), 20))
        gate.set()

    threading.Thread(target=watch, daemon=True).start()
    # Far less than the time that one look waits for.
    assert gate.wait(lynis.LOOK_SECONDS / 2)
    assert seen[0].status == 0


@pytest.mark.parametrize(
    ("deed", "named"),
    [
        ("echo >>include/functions", "include/functions"),
        ("echo skip-test=A-1 >>custom.prf", "custom.prf"),
        ("echo >include/tests_custom", "include/tests_custom"),
        ("rm db/tests.db", "db/tests.db"),
        ("ln -s /dev/null plugins/x", "plugins/x"),
        ("mv db d", "d/languages/en"),
    ],
)
def test_a_tool_that_was_changed_meanwhile_is_named(
    place: lynis.Place, tmp_path: Path, story: Story, deed: str, named: str
) -> None:
    seen = lynis.observe(place, tool(tmp_path, telling(tmp_path, story, f"{deed}\n")), 20)
    assert named in seen.altered


def test_a_program_that_writes_nothing_is_no_pass(place: lynis.Place, tmp_path: Path) -> None:
    seen = lynis.observe(place, tool(tmp_path, "echo 'Fatal error: no include directory'; exit 1\n"), 20)
    assert (seen.status, seen.log.tests, seen.report.finished) == (1, (), False)
    assert "no include directory" in seen.detail


def test_a_package_without_its_parts_is_the_hosts_fault(place: lynis.Place, tmp_path: Path) -> None:
    program = tool(tmp_path, "")
    (tmp_path / "package/etc/lynis/default.prf").unlink()
    program = replace(program, files=program.files - 1)
    with pytest.raises(HostError, match=r"default\.prf"):
        lynis.observe(place, program, 20)
    with pytest.raises(HostError, match="not unpacked"):
        lynis.observe(place, Tool("lynis", "1", "", (), ""), 20)


@pytest.mark.parametrize("begin", ["\x1b]", "\x1bP", "\x1b^", "\u2028warning[]=", "\x1b["])
def test_a_name_with_an_escape_sequence_hides_no_warning(place: lynis.Place, tmp_path: Path, begin: str) -> None:
    """The sequence would end at the BEL of another name, beyond the warning."""
    story = Story(warnings=["TEST-1001|no password|-|-|"], extra=["os_name=x\x07"])
    report = story.report().replace("lynis_version", f"hostname=x{begin}\nlynis_version")
    (tmp_path / "forged").write_text(report)
    script = telling(tmp_path, story, f"cat {shlex.quote(str(tmp_path / 'forged'))} >out/report\n")
    seen = lynis.observe(place, tool(tmp_path, script), 20)
    assert [(remark.test, remark.text) for remark in seen.report.warnings] == [("TEST-1001", "no password")]
    assert seen.report.version == "3.1.4"
