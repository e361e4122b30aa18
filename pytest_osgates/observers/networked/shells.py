"""What a shell's text runs behind words that only run others, and which files it reads as its own text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from pytest_osgates import data
from pytest_osgates.observers.networked.starters import unwrapped, wrappers

_GIVEN = re.compile(r"-[A-Za-z]*c|--command|--session-command")
# The directory of the script itself, as scripts say it.
_HERE = re.compile(
    r"\$\((?:[ \t]*cd[ \t]+[\"']?\$\()?[ \t]*dirname[^)\n]{1,200}\){1,3}(?:[^)\n]{0,40}\bpwd\b[^)\n]{0,20}\))?"
    r"|\$\{(?:0|BASH_SOURCE(?:\[0\])?)%/\*\}"
)
_READ = re.compile(
    r"(?:^|[;&|({]|\b(?:then|do|else|eval|builtin)\b)[ \t]*(?:\.|source)[ \t]+(?:--[ \t]+)?([^\n;&|]{1,300})", re.M
)
_ASSIGNED = re.compile(r"(?<![\w$.-])([A-Za-z_]\w*)=([\"']?)((?:/|\$)[^\s\"';&|`()<>]{0,200})\2(?=[\s;&|)]|$)", re.M)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?[-=]([^{}$]*))?\}|(\w+))")
_FUNCTION = re.compile(
    r"^([ \t]*)(?:function[ \t]+([\w.:-]+)(?:[ \t]*\([ \t]*\))?|([\w.:-]+)[ \t]*\([ \t]*\))[ \t]*(?:\n[ \t]*)?[{(]",
    re.M,
)
_WORD = re.compile(r"[\w.:-]+")
_ROUNDS = 4
# Where a name without a slash is looked for.
_PATH = ("/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin")


@dataclass(frozen=True)
class Within:
    """After which of its words a program has a command, and how many words come between."""

    after: frozenset[str]
    operands: int


@cache
def within() -> dict[str, Within]:
    """data/netscripts.toml, ``[[within]]``, by name."""
    return {
        name: Within(frozenset(row["after"]), row.get("operands", 0))
        for row in data.load("netscripts")["within"]
        for name in row["names"]
    }


@cache
def givers() -> frozenset[str]:
    """Programs whose option -c is followed by a text for a shell."""
    return frozenset(data.load("netscripts")["shell"]["givers"])


def runners() -> frozenset[str]:
    """All programs that run others which their words name."""
    return frozenset(within()) | givers() | frozenset(wrappers())


def behind(words: tuple[str, ...]) -> Iterator[str]:
    """The texts, for a shell, of what a command runs by others of its words."""
    name = words[0].rpartition("/")[2]
    if name == "busybox":
        yield shlex.join(words[1:])
    if name in givers():
        for index, word in enumerate(words[1:-1], 1):
            if _GIVEN.fullmatch(word):
                yield words[index + 1]
    inner = within().get(name)
    if inner is not None:
        for index, word in enumerate(words):
            option, is_assigned, value = word.partition("=")
            if option in inner.after:
                yield _text((value,) if is_assigned else words[index + 1 + inner.operands :])
    run = unwrapped(words).words
    if run != words:
        yield _text(run)


def _text(words: tuple[str, ...]) -> str:
    """One word may be a whole text; of several, each is one."""
    if words[:1] == ("--",):
        words = words[1:]
    return words[0] if words and (len(words) == 1 or " " in words[0]) else shlex.join(words)


def read_files(text: str, here: str) -> Iterator[str]:
    """The paths of files that a text reads with ``.`` or ``source``, as far as it says them; `here`: the directory of
    the script."""
    text = _HERE.sub(here or "/", text)
    values = {name: value for name, _, value in _ASSIGNED.findall(text)}
    for match in _READ.finditer(text):
        words = _valued(match[1], values).replace('"', "").replace("'", "").split()
        if not words or "$" in words[0] or "`" in words[0]:
            continue
        path = words[0].rstrip(")}")
        if path.startswith("/"):
            yield path
        elif "/" not in path:
            yield from (f"{directory}/{path}" for directory in _PATH)


def _valued(text: str, values: dict[str, str]) -> str:
    for _ in range(_ROUNDS):
        if "$" not in text or len(text) > 1000:
            break
        text = _VARIABLE.sub(lambda match: values.get(match[1] or match[3], match[2] or match[0]), text)
    return text


def divided(text: str) -> tuple[str, dict[str, list[str]]]:
    """A text without its functions, and those by their names. What cannot be told apart is of the text itself."""
    outside: list[str] = []
    functions: dict[str, list[str]] = {}
    at = 0
    while (match := _FUNCTION.search(text, at)) is not None:
        line = text.find("\n", match.end())
        end = len(text) if line < 0 else line
        if not text[match.end() : end].rstrip().endswith(("}", ")")):
            last = re.compile(rf"\n{match[1]}[}})]").search(text, match.end())
            if last is None:
                break
            end = last.end()
        outside.append(text[at : match.start()])
        # The brace opens a list of commands.
        functions.setdefault(match[2] or match[3], []).append(f"{{ {text[match.end() : end]}")
        at = end
    outside.append(text[at:])
    return "\n".join(outside), functions


def words_of(text: str) -> set[str]:
    """All that may be names of functions in a text."""
    return set(_WORD.findall(text))
