"""The kernel command line, taken apart as the kernel does it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One parameter; `value` is None where there was no ``=``. `for_init`: it stood after ``--``."""

    name: str
    value: str | None = None
    for_init: bool = False

    @property
    def text(self) -> str:
        """``NAME`` or ``NAME=VALUE``."""
        return self.name if self.value is None else f"{self.name}={self.value}"


def parse(line: str) -> list[Parameter]:
    """All parameters in order, as next_arg() in the kernel's lib/cmdline.c reads them: double quotes protect white
    space, and are dropped around a whole parameter or a whole value; what stands after ``--`` is for init.
    """
    found: list[Parameter] = []
    for_init = False
    for word in _words(line):
        if word == "--" and not for_init:
            for_init = True
            continue
        quoted = word.startswith('"')
        text = word[1:] if quoted else word
        at = text.find("=", 1)
        name, value = (text, None) if at < 0 else (text[:at], text[at + 1 :])
        if value is not None and value.startswith('"'):
            value = value[1:].removesuffix('"')
        elif quoted and value is not None:
            value = value.removesuffix('"')
        elif quoted:
            name = name.removesuffix('"')
        found.append(Parameter(name, value, for_init))
    return found


def _words(line: str) -> list[str]:
    words: list[str] = []
    word, in_quotes = "", False
    # Byte by byte: 0xa0 is white space to the kernel (lib/ctype.c), also where it is half of a character.
    for char in line.encode("utf-8", "replace").decode("latin-1"):
        if char in " \t\n\v\f\r\xa0" and not in_quotes:
            if word:
                words.append(word)
            word = ""
            continue
        if char == '"':
            in_quotes = not in_quotes
        word += char
    if word:
        words.append(word)
    return [text.encode("latin-1").decode("utf-8", "replace") for text in words]


def same_name(name: str) -> str:
    """Names that the kernel takes for one: ``-`` and ``_`` are equal (parameq() in kernel/params.c)."""
    return name.replace("-", "_")
