"""Headers and data bases of rpm, small ones."""

from __future__ import annotations

import sqlite3
import struct


def header(*tags: tuple[int, int, int, bytes]) -> bytes:
    """A header of (tag, type, count, data)."""
    index, data = b"", b""
    for tag, kind, count, value in tags:
        index += struct.pack(">IIiI", tag, kind, len(data), count)
        data += value
    return struct.pack(">II", len(tags), len(data)) + index + data


def simple(name: bytes, version: bytes = b"1") -> bytes:
    return header((1000, 6, 1, name + b"\0"), (1001, 6, 1, version + b"\0"), (1002, 6, 1, b"2.fc43\0"))


def database(*blobs: bytes, index: bool = True, schema: str = "") -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        schema
        or "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);"
        "CREATE TABLE Name (key TEXT NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL);"
    )
    for blob in () if schema else blobs:
        row = connection.execute("INSERT INTO Packages (blob) VALUES (?)", (blob,)).lastrowid
        if index:
            connection.execute("INSERT INTO Name VALUES ('x', ?, 0)", (row,))
    connection.commit()
    raw = connection.serialize()
    connection.close()
    return raw


def with_files(flags: tuple[int, ...]) -> bytes:
    """A package of three files in /usr/bin, with these flags."""
    numbers = [struct.pack(f">{len(some)}I", *some) for some in ((0, 0, 0), flags)]
    tags = [(1000, 6, 1, b"a\0"), (1001, 6, 1, b"1\0"), (1116, 4, 3, numbers[0])]
    tags += [(1117, 8, 3, b"a\0b\0c\0"), (1118, 8, 1, b"/usr/bin/\0")]
    return header(*tags, (1037, 4, len(flags), numbers[1]))
