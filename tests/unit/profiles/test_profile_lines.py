"""Lines of keys: each key's own, or none; held against what tomllib makes of the same lines alone."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_osgates.profiles import lines, loader
from pytest_osgates.profiles.lines import Lines, Path

TEXT = """\
# a comment: [no.table]
schema = 1
a.b = 2 # dotted
list = [
  "x]", # ]
  { y = 1 },
]
text = \"\"\"
[not.a.table]
schema = 2
\"\"\"

[gate.boot]
'quoted key' = 1

  [[gate.x.accept]]
reason = '''
]
[[gate.x.accept]]
'''
  [[gate.x.accept]]
reason = ""
[gate.x.accept.more]
deep = { very = { deep = [ { e = 1 } ] } }
[gate.x]
last = true"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("schema",), 2),
        (("a",), 3),
        (("a", "b"), 3),
        (("list",), 4),
        (("list", 1, "y"), 4),
        (("text",), 8),
        (("gate",), 13),
        (("gate", "boot"), 13),
        (("gate", "boot", "quoted key"), 14),
        (("gate", "x"), 16),
        (("gate", "x", "accept", 0), 16),
        (("gate", "x", "accept", 0, "reason"), 17),
        (("gate", "x", "accept", 1), 21),
        (("gate", "x", "accept", 1, "reason"), 22),
        (("gate", "x", "accept", 1, "more"), 23),
        (("gate", "x", "accept", 1, "more", "deep", "very", "deep", 0, "e"), 24),
        (("gate", "x", "last"), 26),
        # What is not there is missed in the table around it.
        (("gate", "boot", "none"), 13),
        (("gate", "x", "accept", 1, "none"), 21),
        (("gate", "y"), 13),
        (("name",), None),
    ],
)
def test_lines(path: Path, line: int | None) -> None:
    tomllib.loads(TEXT)
    assert Lines(TEXT).of(path) == line
    assert Lines(TEXT.replace("\n", "\r\n")).of(path) == line


def paths(value: object, so_far: Path = ()) -> list[Path]:
    """Every key and element of a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in pairs for path in ((*so_far, key), *paths(inner, (*so_far, key)))]


@pytest.mark.parametrize("name", sorted(loader.built_in()))
def test_every_key_of_the_built_in_profiles_stands_in_its_line(name: str) -> None:
    text = loader.built_in()[name].read_text()
    source = text.split("\n")
    found = Lines(text)
    for path in paths(tomllib.loads(text)):
        line = found._lines[path]
        key = next(part for part in reversed(path) if isinstance(part, str))
        assert key in source[line - 1], (path, line)


key = st.sampled_from(["a", "b", '"c d"', "'e'", "a.b", "f"])
scalar = st.sampled_from(
    ["1", "'x'", '"]"', '"""\n[a]\nb = 1\n"""', "'''\n]'''", "[]", "[\n 1, # ]\n [2,\n]]", "{ a = 1 }"]
)
expression = st.one_of(
    st.builds("{} = {}".format, key, scalar),
    st.builds("[{}]".format, key),
    st.builds("  [[{}]]".format, key),
    st.sampled_from(["", "# [a]", "\t# b = 1"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(expression, max_size=12))
def test_a_line_is_that_of_the_key_or_of_the_table_around_it(expressions: list[str]) -> None:
    """Expressions that contradict each other are left out one by one, as tomllib refuses them."""
    kept: list[str] = []
    known: dict[Path, int] = {}
    for text in expressions:
        try:
            data: dict[str, Any] = tomllib.loads("\n".join([*kept, text]))
        except tomllib.TOMLDecodeError:
            continue
        line = "\n".join([*kept, ""]).count("\n") + 1
        for path in paths(data):
            known.setdefault(path, line)
        kept.append(text)
    found = Lines("\n".join(kept))
    assert {path: found.of(path) for path in known} == known


def test_what_takes_too_long_has_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_PARSED", 10_000)
    assert Lines("a = 1\nb = [\n" + "']',\n" * 1000 + "]\n").of(("a",)) is None
    assert Lines("a = 1\nb = [\n" + "'x',\n" * 1000 + "]\n").of(("a",)) == 1


def test_a_long_profile_is_searched_quickly() -> None:
    begun = time.monotonic()
    text = "".join("[[gate.x.accept]]\nreason = 'r'\noptions = [\n'o', 'o'\n]\n" for _ in range(5000))
    assert Lines(text).of(("gate", "x", "accept", 4999, "reason")) == 4999 * 5 + 2
    assert time.monotonic() - begun < 10.0
