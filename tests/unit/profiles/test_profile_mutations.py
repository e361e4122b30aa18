"""The built-in profiles with something changed: a profile or a UsageError that names a line that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_osgates.profiles import loader
from pytest_osgates.profiles.schema import Profile
from pytest_osgates.vm.errors import UsageError

TEXTS = {name: path.read_text() for name, path in sorted(loader.built_in().items())}
QUIET = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = (
    "0",
    "-1",
    "1e999",
    "nan",
    "''",
    "'x'",
    "[]",
    "[[]]",
    "{}",
    "true",
    "1979-05-27",
    "[1, 'x']",
    '"""\n"""',
    "'*'",
)
LINES = (
    "",
    "[gate]",
    "[gate.boot]",
    "[[gate.settings.unit]]",
    "[machine]",
    "x = 1",
    "gates = []",
    "gates = ['x']",
    "]",
    '"""',
)


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A profile with up to three things done to its lines or bytes."""
    lines = TEXTS[draw(st.sampled_from(sorted(TEXTS)))].split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 7)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 2:
                lines.insert(at, draw(st.sampled_from(LINES)))
            case 3:
                lines[at] = re.sub(r"= .*", f"= {draw(st.sampled_from(VALUES))}", lines[at])
            case 4:
                new = draw(st.sampled_from(["", "x", "\\", '"', "é"]))
                lines[at] = re.sub(r"[a-z]", lambda _, new=new: new, lines[at], count=1)
            case 5:
                del lines[at:]
            case 6:
                lines[at] = lines[at][::-1]
            case _:
                where = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:where] + draw(st.characters()) + lines[at][where:]
        lines = lines or [""]
    return "\n".join(lines)


@settings(QUIET, max_examples=50)
@given(text=changed())
def test_a_changed_profile_is_a_profile_or_is_refused_with_lines_that_are_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.toml"
    raw = text.encode("utf-8", "surrogatepass")
    path.write_bytes(raw)
    refused = None
    try:
        profile = loader.load(path)
    except UsageError as error:
        refused = error
    if refused is not None:
        said = str(refused)
        assert said.startswith(str(path))
        assert refused.remedy
        lines = raw.split(b"\n")
        for number in re.findall(r"\bline (\d+)", said):
            assert 1 <= int(number) <= len(lines)
        for number, key in re.findall(r"line (\d+): unknown key ([\w.-]+)", said):
            assert key.rpartition(".")[2].encode() in lines[int(number) - 1]
    else:
        assert isinstance(profile, Profile)
        assert profile.required
        assert all(section.rows for section in profile.gates.values())


@settings(QUIET, max_examples=8)
@given(data=st.data())
def test_comments_and_blank_lines_change_nothing(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TEXTS)))
    path = tmp_path / "p.toml"
    lines = TEXTS[name].split("\n")
    # Between two expressions: above a header, or above the first line.
    places = [0, *(number for number, line in enumerate(lines) if line.startswith("["))]
    for at in sorted(data.draw(st.lists(st.sampled_from(places), max_size=6)), reverse=True):
        lines.insert(at, data.draw(st.sampled_from(["", "# [gate.x]", "   ", "\t# required = false"])))
    path.write_bytes(data.draw(st.sampled_from(["\n", "\r\n"])).join(lines).encode())
    same = {"sha256": "", "source": ""}
    before = loader.load(loader.built_in()[name])
    assert loader.load(path).model_copy(update=same) == before.model_copy(update=same)


@settings(QUIET, max_examples=60)
@given(raw=st.one_of(st.binary(max_size=60), st.text("[]{}=.,'\"\\\n#ab1 ", max_size=60).map(str.encode)))
def test_any_bytes_are_refused_as_a_usage_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(raw)
    with pytest.raises(UsageError):
        loader.load(path)
