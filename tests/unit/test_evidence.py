"""The evidence store: whole files or none, digests that fit, names that stay names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from gate_samples import HOSTILE, booted
from hypothesis import given, settings

from pytest_osgates import evidence as module
from pytest_osgates.checks.boot import BootObservation
from pytest_osgates.checks.kconfig import KconfigObservation
from pytest_osgates.evidence import Evidence, dump, new_run_id, safe_name, write_atomic
from pytest_osgates.vm.errors import HostError

SHA = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Evidence:
    return Evidence.create(tmp_path, SHA, "run-1")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_run_has_a_directory_of_its_own(tmp_path: Path, store: Evidence) -> None:
    assert store.root == tmp_path / "0123456789ab" / "run-1"
    assert sorted(path.name for path in store.root.iterdir()) == ["inputs", "machines", "observations"]
    with pytest.raises(HostError, match="--iso-evidence"):
        Evidence.create(tmp_path, SHA, "run-1")


def test_run_ids_differ_and_begin_with_the_time() -> None:
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", name) for name in ids)


def test_a_directory_that_cannot_be_made_is_the_hosts_fault_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be made") as caught:
        Evidence.create(tmp_path / "file", SHA, "run")
    assert caught.value.remedy is not None
    assert "--iso-evidence" in caught.value.remedy


def test_writing_says_the_digest_of_what_is_on_disk(store: Evidence) -> None:
    stored = store.write("inputs/kconfig/config", b"CONFIG_X=y\n")
    data = (store.root / stored.path).read_bytes()
    assert data == b"CONFIG_X=y\n"
    assert stored.sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert files(tmp_path) == {"f"}


@pytest.mark.parametrize("step", ["fsync", "rename", "write"])
def test_a_full_disk_leaves_the_old_content_and_nothing_half_written(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(module.os, "fsync", full)
    elif step == "rename":
        monkeypatch.setattr(Path, "replace", full)
    else:
        # A device that takes nothing, under the name of the partial file.
        (tmp_path / f".f.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left on device") as caught:
        write_atomic(path, b"new")
    assert "--iso-evidence" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"f"}


@pytest.mark.parametrize("name", ["file/below", "x" * 300, "missing/f"])
def test_a_place_that_cannot_be_written_is_the_hosts_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(HostError, match="cannot be written"):
        write_atomic(tmp_path / name, b"new")
    assert files(tmp_path) == {"file"}


def test_a_directory_in_the_way_is_the_hosts_fault(store: Evidence) -> None:
    (store.root / "inputs" / "tool").write_text("")
    with pytest.raises(HostError, match="cannot be made"):
        store.write("inputs/tool/config", b"")
    (store.root / "verdicts.json").mkdir()
    with pytest.raises(HostError, match="cannot be written"):
        store.write("verdicts.json", b"{}")


def test_an_observation_comes_back_as_it_was(store: Evidence) -> None:
    seen = booted(console={"serial": (HOSTILE,)})
    stored = store.store_observation("boot", "uefi-channel", seen)
    assert stored.path == "observations/boot/uefi-channel.json"
    assert store.read_observation(stored.path, BootObservation) == seen
    assert store.store_observation("boot", "", seen).path == "observations/boot.json"
    text = (store.root / stored.path).read_bytes()
    assert text.isascii()
    assert b"\x1b" not in text


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"[]", b"\xff"])
def test_a_damaged_observation_is_refused(damage: bytes, store: Evidence) -> None:
    stored = store.store_observation("boot", "x", booted())
    (store.root / stored.path).write_bytes(damage)
    with pytest.raises(HostError, match="cannot be read back"):
        store.read_observation(stored.path, BootObservation)


def test_another_gates_observation_is_refused(store: Evidence) -> None:
    stored = store.store_observation("boot", "x", booted())
    with pytest.raises(HostError, match="cannot be read back"):
        store.read_observation(stored.path, KconfigObservation)
    with pytest.raises(HostError, match="cannot be read back"):
        store.read_observation("observations/none.json", BootObservation)


def test_machines_of_one_name_do_not_share_their_records(store: Evidence) -> None:
    made = [store.machine("uefi/../bare").name for _ in range(3)]
    assert made == ["uefi_.._bare", "uefi_.._bare.2", "uefi_.._bare.3"]
    (store.root / "machines").rename(store.root / "gone")
    with pytest.raises(HostError, match="cannot be made"):
        store.machine("late")


def test_the_manifest_lists_every_file_with_its_digest(store: Evidence) -> None:
    store.write("verdicts.json", b"older")
    store.write("inputs/kconfig/config", b"CONFIG_X=y\n")
    (store.root / "machines" / "Grüße").write_bytes(bytes(3_000_000))
    (store.root / "machines" / "link").symlink_to("/etc/passwd")
    store.finish(b"{}", {"run": "run-1", "interrupted": ""})
    manifest = json.loads((store.root / "manifest.json").read_text())
    assert (manifest["schema"], manifest["run"], manifest["ended"]) == (1, "run-1", True)
    assert (store.root / "verdicts.json").read_bytes() == b"{}"
    assert set(manifest["files"]) == files(store.root) - {"manifest.json", "machines/link"}
    check_digests(store, manifest)
    store.finish(b"{}", {"run": "run-1"})
    assert json.loads((store.root / "manifest.json").read_text())["files"] == manifest["files"]


def check_digests(store: Evidence, manifest: dict[str, Any]) -> None:
    for name, entry in manifest["files"].items():
        data = (store.root / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_a_manifest_stands_while_the_run_goes_on(store: Evidence) -> None:
    """It has what is finished, and names the rest; a killed run leaves nothing that it would have to take back."""
    store.write("observations/boot/a.json", b"1")
    machine = store.machine("a")
    for name in ("serial.log", "events.jsonl", "qemu.json", "screen-ready.png"):
        (machine / name).write_bytes(b"2")
    store.write("inputs/lynis/lynis.log", b"3")
    store.go_on(b"{}", {"run": "run-1"})
    manifest = json.loads((store.root / "manifest.json").read_text())
    assert manifest["ended"] is False
    assert set(manifest["files"]) == {
        *("observations/boot/a.json", "machines/a/screen-ready.png", "inputs/lynis/lynis.log"),
    }
    assert manifest["open"] == [
        *("machines/a/events.jsonl", "machines/a/qemu.json", "machines/a/serial.log", "verdicts.json"),
    ]
    check_digests(store, manifest)


def test_only_what_changed_is_read_again_until_the_end(store: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    digest = hashlib.file_digest

    def spy(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(module.hashlib, "file_digest", spy)
    store.write("inputs/a", b"1")
    store.write("inputs/b", b"1")
    store.go_on(b"{}", {})
    store.write("inputs/b", b"2")
    store.go_on(b"{}", {})
    assert read == ["a", "b", "b"]
    check_digests(store, json.loads((store.root / "manifest.json").read_text()))
    store.finish(b"{}", {})
    assert read == ["a", "b", "b", "a", "b"]


def test_the_last_verdicts_are_not_there_without_the_last_manifest(
    store: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is full at the end, what stands there says what it said while the run went on."""
    store.go_on(b'"not ready"', {})
    write = module.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise HostError("full")
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(HostError, match="full"):
        store.finish(b'"all required pass"', {})
    assert (store.root / "verdicts.json").read_bytes() == b'"not ready"'
    assert json.loads((store.root / "manifest.json").read_text())["ended"] is False
    assert files(store.root) == {"verdicts.json", "manifest.json"}


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=200) | st.sampled_from(["..", ".", "", "/", "../../etc", "a\0b", "-rf", "~", HOSTILE]))
def test_no_text_becomes_more_than_one_file_name(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name)
    assert name not in {".", ".."}
    assert not name.startswith(".")
    assert safe_name(name) == name


def test_json_is_ascii_and_ends_with_a_newline() -> None:
    data = dump({"x": HOSTILE, "path": Path("/a")})
    assert data.isascii()
    assert data.endswith(b"}\n")
    assert json.loads(data) == {"x": HOSTILE, "path": "/a"}
