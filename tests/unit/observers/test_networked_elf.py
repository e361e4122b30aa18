"""What ELF programs hide: in their code, in libraries that they load, behind names of others."""

from __future__ import annotations

import pytest
from elf_builders import COMPUTED, WRITE, elf, library, static
from memory_root import Entry, program
from test_networked import UNIT, found, kinds, only, scanned

from pytest_osgates.checks.apparmor_model import Kind, Tier


@pytest.mark.parametrize("soname", ["libjacknet.so.0", "libnl-http.so.1", "libnetfilter_web.so.1", "libdb-http.so"])
def test_a_library_whose_name_only_begins_like_that_of_a_carrier(soname: str) -> None:
    files: dict[str, Entry] = {
        f"/usr/lib/{soname}": library(soname, ("socket", "connect")),
        "/usr/bin/x": program(elf((soname,))),
    }
    assert kinds(only(files)) == {Kind.LINKS_UNLISTED}


@pytest.mark.parametrize("name", ["BIO_new_connect", "BIO_do_connect_retry", "BIO_new_dgram", "OSSL_HTTP_get"])
def test_who_uses_the_network_of_libcrypto(name: str) -> None:
    files: dict[str, Entry] = {
        "/usr/lib/libcrypto.so.3": library("libcrypto.so.3", ("socket", "listen")),
        "/usr/bin/x": program(elf(("libcrypto.so.3",), (name,))),
        "/usr/bin/digest": program(elf(("libcrypto.so.3",), ("EVP_DigestInit", "BIO_new_file"))),
    }
    entries = found(files)
    assert (entries["/usr/bin/x"].tier, kinds(entries["/usr/bin/x"])) == (Tier.B, {Kind.IMPORTS})
    assert entries["/usr/bin/digest"].tier is Tier.C


def test_who_listens_by_libcrypto_is_a_server() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/libcrypto.so.3": library("libcrypto.so.3", ("socket", "listen")),
        "/opt/d": program(elf(("libcrypto.so.3",), ("BIO_new_accept",))),
        "/etc/systemd/system/d.service": UNIT.format("/opt/d").encode(),
    }
    assert only(files).tier is Tier.A


def test_a_library_that_a_library_loads_by_name() -> None:
    """As java, libjli and libjvm."""
    loads = elf((), ("dlopen",), soname="libjli.so", interpreter="", data=b"\0%s/lib/%s/libjvm.so\0")
    files: dict[str, Entry] = {
        "/opt/j/bin/java": program(elf(("libjli.so",), rpath="$ORIGIN/../lib")),
        "/opt/j/lib/libjli.so": loads,
        "/usr/lib/libhost.so.1": elf(
            (), ("dlmopen",), soname="libhost.so.1", interpreter="", data=b"\0libcurl.so.4\0"
        ),
        "/usr/lib/libthin.so.1": library("libthin.so.1", (), ("libhost.so.1",)),
        "/usr/bin/host": program(elf(("libthin.so.1",))),
        # What somebody looked at, and what cannot load anything.
        "/usr/lib/libglib-2.0.so.0": elf(
            (), ("dlopen",), soname="libglib-2.0.so.0", interpreter="", data=b"\0libcurl.so.4\0"
        ),
        "/usr/bin/carried": program(elf(("libglib-2.0.so.0",))),
        "/usr/lib/libquiet.so.1": elf((), soname="libquiet.so.1", interpreter="", data=b"\0libcurl.so.4\0"),
        "/usr/bin/quiet": program(elf(("libquiet.so.1",))),
    }
    entries = found(files)
    assert set(entries) == {"/opt/j/bin/java", "/usr/bin/host"}
    assert kinds(entries["/opt/j/bin/java"]) == kinds(entries["/usr/bin/host"]) == {Kind.LOADS}
    assert entries["/opt/j/bin/java"].evidence[0].detail.startswith("libjli.so -> libjvm.so: the runtime")


def test_more_names_of_libraries_than_are_looked_for() -> None:
    names = b"".join(b"\0libx%d.so\0" % number for number in range(500))
    files: dict[str, Entry] = {
        "/usr/bin/a": program(elf(imports=("dlopen",), data=names)),
        "/usr/lib/libmany.so.1": elf((), ("dlopen",), soname="libmany.so.1", interpreter="", data=names),
        "/usr/bin/b": program(elf(("libmany.so.1",))),
    }
    assert {path: kinds(entry) for path, entry in found(files).items()} == {
        "/usr/bin/a": {Kind.UNTOLD},
        "/usr/bin/b": {Kind.UNTOLD},
    }


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        # mov $9,%eax; mov $7,%edx; syscall
        (static(bytes.fromhex("b809000000ba070000000f05")), "its own code makes memory executable"),
        (static(WRITE).replace(b"\1\0\0\0\5", b"\1\0\0\0\7", 1), "a part of it is code that can be written to"),
        (elf().replace(b"\1\0\0\0\5", b"\1\0\0\0\7", 1), "a part of it is code that can be written to"),
        (static(b"UPX!" + bytes(60) + WRITE), "it is packed: what runs is not what stands in the file"),
    ],
)
def test_code_that_is_not_in_the_file(data: bytes, detail: str) -> None:
    entry = only({"/opt/x": program(data)})
    assert [(reason.kind, reason.detail) for reason in entry.evidence] == [(Kind.UNTOLD, detail)]


def test_a_system_call_of_a_dynamic_program_whose_number_is_computed() -> None:
    clear = b"\x90" * 80
    entry = only({"/opt/x": program(elf(code=clear + COMPUTED))})
    assert kinds(entry) == {Kind.UNTOLD}
    both = only({"/opt/x": program(elf(imports=("socket",), code=clear + COMPUTED))})
    assert kinds(both) == {Kind.IMPORTS}, "it is known what this one is"
    # In the middle of another instruction: mov $0x50f,%ecx.
    assert found({"/opt/x": program(elf(code=clear + b"\xb9\x0f\x05\0\0"))}) == {}


@pytest.mark.parametrize("mode", [0o755, 0o644])
def test_what_the_dynamic_linker_runs_is_a_program_though_it_has_no_interpreter(mode: int) -> None:
    files: dict[str, Entry] = {
        "/opt/d": program(elf(imports=("socket", "listen", "getaddrinfo"), interpreter=""), mode=mode),
        "/etc/systemd/system/d.service": UNIT.format("/lib64/ld-linux-x86-64.so.2 /opt/d").encode(),
    }
    entry = only(files)
    assert (entry.path, entry.tier) == ("/opt/d", Tier.A)
    assert kinds(entry) == {Kind.IMPORTS, Kind.LISTENING_SERVICE}
    assert scanned(files).elves == 5, "with the dynamic linker, each once"
    del files["/etc/systemd/system/d.service"]
    assert found(files) == {}, "a library by itself is no program"
