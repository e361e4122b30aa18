"""Locks: read back what was written, and refuse what was tampered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.demo import Lock, load_definition, read_lock
from pytest_osgates.demo.lock import check_lock, media_names, parse_lock
from pytest_osgates.vm.errors import UsageError


def package(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1:2~rc1-3+b1",
        "architecture": "amd64",
        "archive": "debian",
        "filename": f"pool/main/{name[0]}/{name}_2~rc1-3+b1_amd64.deb",
        "sha256": "0f" * 32,
        "size": 77,
    }


def lock_data() -> dict[str, Any]:
    definition = load_definition()
    return {
        "schema": 1,
        "name": definition.name,
        "architecture": "amd64",
        "suites": [["debian", "trixie", "main"]],
        "packages": [package(name) for name in definition.package_names],
        "media": [package(name) for name in media_names(definition)],
        "tools": {"xorriso": "1.5.4"},
    }


def test_a_lock_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    lock = Lock.model_validate(lock_data())
    path = tmp_path / "x.lock.json"
    lock.write(path)
    assert read_lock(path) == lock
    assert path.read_text() == lock.render()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lock.json"]
    check_lock(lock, load_definition())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "0F" * 32),
        ("sha256", "0f" * 31),
        ("size", 0),
        ("size", "many"),
        ("filename", "../../etc/passwd.deb"),
        ("filename", "pool/x;reboot.deb"),
        ("name", "foo bar"),
        ("version", "1 --force"),
        ("archive", "elsewhere"),
        ("extra", 1),
    ],
)
def test_a_tampered_package_is_refused(tmp_path: Path, field: str, value: object) -> None:
    data = lock_data()
    data["packages"][0][field] = value
    path = tmp_path / "x.lock.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"(?s)x\.lock\.json.*{field}.*resolve a new lock"):
        read_lock(path)


def test_a_package_named_twice_is_refused() -> None:
    data = lock_data()
    data["packages"].append(data["packages"][0])
    with pytest.raises(UsageError, match="twice"):
        parse_lock(json.dumps(data).encode())


@pytest.mark.parametrize("part", ["packages", "media"])
def test_a_lock_of_another_definition_is_refused(part: str) -> None:
    data = lock_data()
    lost = data[part].pop()
    with pytest.raises(UsageError, match=lost["name"]):
        check_lock(parse_lock(json.dumps(data).encode()), load_definition())


def test_a_lock_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        read_lock(tmp_path / "none")


@given(
    st.binary(max_size=100)
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_bytes_are_refused_cleanly(content: bytes) -> None:
    with pytest.raises(UsageError):
        parse_lock(content)
