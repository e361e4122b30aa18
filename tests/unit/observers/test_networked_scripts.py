"""Scripts that talk on the network: what they import, and what they run."""

from __future__ import annotations

import time

import pytest
from elf_builders import elf, library
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_root import Entry, Link, program, root

from pytest_osgates.checks.apparmor_model import Kind, Tier
from pytest_osgates.observers.networked.scan import scan
from pytest_osgates.observers.networked.scripts import (
    Language,
    commands,
    imported,
    is_network,
    language_of,
    modules,
    parse_shebang,
)
from pytest_osgates.observers.networked.shells import divided, read_files


def language(name: str) -> Language:
    found = language_of(name)
    assert isinstance(found, Language)
    return found


@pytest.mark.parametrize(
    ("head", "interpreter", "arguments"),
    [
        (b"#!/bin/sh\n", "/bin/sh", ()),
        (b"#! /usr/bin/perl -w\nuse x", "/usr/bin/perl", ("-w",)),
        (b"#!/usr/bin/env python3\n", "python3", ()),
        (b"#!/usr/bin/env -S A=1 python3 -u\n", "python3", ("-u",)),
        (b"#!/usr/bin/env\n", "/usr/bin/env", ()),
        (b"#!/usr/bin/env -Spython3 -u\n", "python3", ("-u",)),
        (b"#!/usr/bin/env -vS python3 -u\n", "python3", ("-u",)),
        (b"#!/usr/bin/env -iS-u PYTHONPATH python3\n", "python3", ()),
        (b"#!/usr/bin/env -S -u PYTHONPATH python3 -s\n", "python3", ("-s",)),
        (b"#!/usr/bin/env -S -uPYTHONPATH -C / A=1 python3\n", "python3", ()),
        (b"#!/usr/bin/env --split-string=python3 -u\n", "python3", ("-u",)),
        (b"#!/usr/bin/env --split=-u A --chdir=/ --unset B python3\n", "python3", ()),
        (b"#!/usr/bin/env -S 'python3' -- x\n", "python3", ("--", "x")),
        (b"#!/usr/bin/env -S -u\n", "/usr/bin/env", ()),
        (b"#!sh", "sh", ()),
    ],
)
def test_first_lines(head: bytes, interpreter: str, arguments: tuple[str, ...]) -> None:
    found = parse_shebang(head)
    assert found is not None
    assert (found.interpreter, found.arguments) == (interpreter, arguments)


@pytest.mark.parametrize("head", [b"", b"#", b"#!", b"#! \n", b"\x7fELF", b" #!/bin/sh\n"])
def test_no_script(head: bytes) -> None:
    assert parse_shebang(head) is None


@given(st.binary(max_size=300))
def test_any_first_line(head: bytes) -> None:
    found = parse_shebang(head)
    assert (found is None) or (head.startswith(b"#!") and found.interpreter)


@pytest.mark.parametrize(
    ("name", "text", "network"),
    [
        ("python3", "import os, socket\n", True),
        ("python3.13", "from urllib.request import urlopen\n", True),
        ("python3", "from urllib.parse import quote\n", False),
        ("python3", "    import http.client as c\n", True),
        ("python3", "x = __import__('socket')\n", True),
        ("python3", 'import importlib; importlib.import_module("ssl")\n', True),
        ("python3", "from gi.repository import Gio, GLib\n", True),
        ("python3", "# import socket\nimport sys\nprint('import of socket')\n", False),
        ("python3", "import socketfoo\n", False),
        ("python3", "try: import socket\nexcept ImportError: pass\n", True),
        ("python3", "import os; from socket import create_server\n", True),
        ("python3", "from socket import(create_server)\n", True),
        ("python3", "from urllib import (\n    parse,\n    request,\n)\n", True),
        ("python3", "from urllib import (\n    parse,  # this\n    request,\n)\n", True),
        ("python3", "from gi.repository import (\n    GLib,\n    Gio,\n)\n", True),
        ("python3", "from PyQt6 import \\\n  QtCore, \\\n  QtNetwork\n", True),
        ("python3", "# a comment \\\nimport socket\n", True),
        ("python3", "import os\rimport socket\r", True),
        ("python3", "import urllib . request\n", True),
        ("python3", "if 1:\n  match x:\n    case 1: import ssl\n", True),
        ("python3", "class A:\n  def f(self):\n    with a: from.b import c; import ssl as d\n", True),
        ("python2", "print 'x'\ntry: import httplib\nexcept: pass\n", True),
        ("python2", "print 'x'; from urllib2 import(urlopen)\n", True),
        ("python3", "from urllib import (\n    parse,\n    error,\n)\n", False),
        ("python3", "print('note: import socket'); x = 'if 1: from ssl import a'\n", False),
        ("perl", "use strict; use warnings; use Socket;\n", True),
        ("perl", "use base qw(Net::Server::Fork);\n", True),
        ("perl", "use parent -norequire,\n  'My::Own', 'HTTP::Server::Simple';\n", True),
        ("perl", "socket(S, 2, 1, 6); connect(S, $x);\n", True),
        ("perl", "my $a = gethostbyname $name;\n", True),
        ("perl", "socket(my $s, AF_UNIX, SOCK_STREAM, 0);\n", False),
        ("perl", "$self->socket($x, 1); sub gethostbyname { 1 }\n", False),
        ("perl", "use parent qw(Exporter);\nuse base 'My::Net::Own';\n", False),
        ("perl", "use strict;\nuse IO::Socket::INET;\n", True),
        ("perl", "  require LWP::UserAgent;\n", True),
        ("perl5.40", "my $s = IO::Socket::INET->new('x');\n", True),
        ("perl", "use File::Spec;\n", False),
        ("ruby3.3", "require 'net/http'\n", True),
        ("ruby", "TCPSocket.new 'x', 1\n", True),
        ("ruby", "require 'json'; require 'net/http'\n", True),
        ("ruby", "begin require 'socket' rescue LoadError end\n", True),
        ("ruby", "autoload :HTTP, 'net/http'\n", True),
        ("ruby", "require 'json'\n", False),
        ("node", "const n = require('node:net')\n", True),
        ("nodejs", 'import x from "https"\n', True),
        ("node", "await fetch ('http://x')\n", True),
        ("node", "const fs = require('fs')\n", False),
        ("gjs-console", "const Soup = imports.gi.Soup;\n", True),
        ("gjs", "const { Gio, Soup } = imports.gi;\n", True),
        ("gjs", "const {\n  GLib: L,\n  Soup: S,\n} = imports.gi;\n", True),
        ("gjs", "const gi = imports.gi; new gi.Soup.Server();\n", True),
        ("gjs", "imports.gi['Soup']\n", True),
        ("gjs", "import Soup from 'gi://Soup?version=3.0';\n", True),
        ("gjs", "const { GLib, Gtk } = imports.gi;\n", False),
        ("node", "import {\n  get,\n} from 'https';\n", True),
        ("node", "export * from 'node:net';\n", True),
        ("node", "const n = require(`net`)\n", True),
        ("node", "const n = await import('http')\n", True),
        ("node", "import {\n  join,\n} from 'path';\nimport './own.js'\n", False),
        ("lua5.4", "local s = require[[socket]]\n", True),
        ("lua5.4", "local s = require [=[lfs]=]\n", False),
        ("php", "<?php echo file_get_contents('https://x/');\n", True),
        ("php", "<?php fopen(\n  \"ftp://x/\", 'r');\n", True),
        ("php", "<?php fopen('/etc/hosts', 'r'); file_get_contents($x);\n", False),
        ("lua5.4", 'local s = require "socket.http"\n', True),
        ("php8.4", "<?php fsockopen('x');\n", True),
        ("tclsh8.6", "set s [socket localhost 1]\n", True),
        ("gawk", 'BEGIN { s = "/inet/tcp/0/x/80" }\n', True),
        ("mawk", "{ print }\n", False),
    ],
)
def test_modules(name: str, text: str, network: bool) -> None:
    assert bool(list(modules(text, language(name)))) is network


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("curl -s http://x\n", "curl"),
        ("  /usr/bin/wget x; true\n", "wget"),
        ("if ! ping -c1 x; then :; fi\n", "ping"),
        ("x=$(curl x)\n", "curl"),
        ("y=`nc -l 1`\n", "nc"),
        ("true && exec ssh x\n", "ssh"),
        ("A=1 B=2 rsync a b\n", "rsync"),
        ("sudo -n socat a b\n", "socat"),
        ("find . | xargs -0 curl\n", "curl"),
        ("FETCH=/usr/bin/curl\n$FETCH x\n", "curl"),
        ('FETCH=curl\n"${FETCH}" x\n', "curl"),
        ("{ curl x; }\n", "curl"),
        ("cat <\\\n x | \\\n nc x 1\n", "nc"),
        ("exec 3<>/dev/tcp/x/80\n", "/dev/tcp/"),
        ("openssl s_client -connect x\n", "openssl s_client"),
        ("busybox httpd -p 80\n", "httpd, busybox httpd"),
        ("host example.org\n", "host"),
        ("python3 -m http.server\n", "python3 -m http.server"),
        ("timeout 10 curl x\n", "curl"),
        ("timeout -k 5 --signal=9 10 nice -n 3 /usr/bin/curl x; true\n", "curl"),
        ("case $1 in\n  start) curl x;;\nesac\n", "curl"),
        ("case $1 in start | 'a b') curl x;; *) wget y;; esac\n", "curl, wget"),
        ("sh -c 'curl x'\n", "curl"),
        ("bash -lc 'cd /; curl x'\n", "curl"),
        ("su -c 'timeout 5 curl x' somebody\n", "curl"),
        ("sudo -u x curl\n", "curl"),
        ("sudo -u x -- sh -c \"curl 'x'\"\n", "curl"),
        ("nice -n 10 rsync a b\n", "rsync"),
        ("find . | xargs -n 1 wget\n", "wget"),
        ("find . -name '*.x' -exec curl {} \\;\n", "curl"),
        ("find . -exec sh -c 'nc x 1 <$1' sh {} +\n", "nc"),
        ("${CURL:-curl} x\n", "curl"),
        (': "${CURL:=curl}"\n$CURL x\n', "curl"),
        ("trap 'rm x; curl y' EXIT\n", "curl"),
        ("flock /l curl x\n", "curl"),
        ("flock -n /l -c 'curl x'\n", "curl"),
        ("ip netns exec a nc -l 80\n", "nc"),
        ("start-stop-daemon --start --exec /usr/sbin/ntpd -- -g\n", "ntpd"),
        ("start-stop-daemon -S --startas=/usr/sbin/ntpd\n", "ntpd"),
        ("D=/usr/sbin/chronyd\nstart-stop-daemon -S -x $D\n", "chronyd"),
        ("busybox timeout 5 wget x\n", "wget"),
        ("busybox sh -c 'wget x'\n", "wget"),
        ("systemd-run --unit a -p A=b curl x\n", "curl"),
        ("exec -a name curl x\n", "curl"),
        ("# a comment \\\ncurl x\n", "curl"),
        ("x=$(timeout 5 curl x)\n", "curl"),
        ('sudo a "$(timeout 5 curl x)"\n', "curl"),
        ("timeout $(cat t) curl x\n", "curl"),
        ("sh -c '\n  curl x\n'\n", "curl"),
        ("timeout 10 true curl\n", ""),
        ("find . -name curl -exec rm {} \\;\n", ""),
        ("trap - EXIT\nip link show\n", ""),
        ("echo $(date) curl\n", ""),
        ("echo curl\n", ""),
        ("# curl x\n", ""),
        ("rm -f ${links} $host\n", ""),
        ("NAME=ssh\n", ""),
        ("case $x in *.snap|*.deb) ;; esac\n", ""),
        ("curl=1 curlew --curl my-curl curl.txt\n", ""),
        ("openssl dgst -sha256 x\n", ""),
    ],
)
def test_commands(text: str, names: str) -> None:
    assert ", ".join(entry.detail for entry in commands(text)) == names


def test_other_languages_on_a_command_line() -> None:
    (entry,) = commands("python3 -c 'import sys; import socket; socket.socket()'\n")
    assert (entry.kind, entry.detail) == (Kind.MODULES, "python: socket")
    assert list(commands("perl -e 'print 1'\n")) == []


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("python3 - <<'E'\nimport socket\nE\n", "python: socket"),
        ("python3 <<E\nfrom urllib import request\nE\n", "python: urllib.request"),
        ("cat <<E | python3\ntry: import ssl\nE\n", "python: ssl"),
        ("perl -MLWP::Simple -e 'getprint 1'\n", "perl: LWP::Simple"),
        ("perl -we 'use strict; use Socket;'\n", "perl: Socket"),
        ("ruby -rsocket -e 'x'\n", "ruby: socket"),
        ("ruby -e \"require 'net/http'\"\n", "ruby: net/http"),
        ("node --eval 'require(\"net\")'\n", "javascript: net"),
        ("python3 x.py\nimport socket\n", ""),
        ("perl -e 1\nimport socket\n", ""),
    ],
)
def test_texts_for_other_languages(text: str, detail: str) -> None:
    network = [entry.detail for entry in commands(text)]
    assert detail in network[0] if detail and network else detail == "".join(network), network


def test_more_commands_behind_others_than_are_looked_at() -> None:
    (entry,) = commands("".join(f"timeout 5 true {number}\n" for number in range(2000)) + "timeout 5 curl\n")
    assert entry.kind is Kind.UNTOLD


def test_a_shell_script_and_what_it_reads() -> None:
    text = b"#!/bin/sh\nLIB=/usr/lib/x\n. %s\nfetch\n"
    library = b"CURL=curl\nfetch()\n{\n  get x\n}\nget() { $CURL $1; }\nidle() {\n  wget x\n}\n"
    files: dict[str, Entry] = {"/usr/lib/x/net.sh": library, "/usr/lib/x/a/app": program(b"")}
    for path in (b"/usr/lib/x/net.sh", b'"$LIB/net.sh"', b"${LIB:-/a}/net.sh # x"):
        files["/usr/bin/app"] = program(text % path)
        assert entry_of(files, "/usr/bin/app") == (Tier.B, {Kind.COMMANDS}), path
    for path in (b'"$(dirname "$0")/../net.sh"', b"${0%/*}/../net.sh", b'"$(cd "$(dirname "$0")" && pwd)/../net.sh"'):
        files["/usr/lib/x/a/app"] = program(text % path)
        assert entry_of(files, "/usr/lib/x/a/app") == (Tier.B, {Kind.COMMANDS}), path
    files["/usr/bin/app"] = program(b"#!/bin/sh\n. /usr/lib/x/net.sh\n")
    assert entry_of(files, "/usr/bin/app") is None, "it calls none of the functions"
    files["/usr/lib/x/net.sh"] = b"x() {\n true\n}\n. /usr/lib/x/more.sh\n"
    files["/usr/lib/x/more.sh"] = b"curl x\n. /usr/lib/x/net.sh\n"
    assert entry_of(files, "/usr/bin/app") == (Tier.B, {Kind.COMMANDS})
    files["/usr/lib/x/more.sh"] = b"#" * ((4 << 20) + 1)
    assert entry_of(files, "/usr/bin/app") == (Tier.B, {Kind.UNTOLD})


def test_what_a_shell_script_reads_of_another_package_is_reported() -> None:
    stanza = b"Package: %s\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
    files: dict[str, Entry] = {
        "/usr/bin/app": program(b"#!/bin/sh\n. /usr/lib/x/net.sh\n"),
        "/usr/lib/x/net.sh": b"curl x\n",
        "/var/lib/dpkg/status": stanza % b"app" + stanza % b"x",
        "/var/lib/dpkg/info/app.list": b"/usr/bin/app\n",
        "/var/lib/dpkg/info/x.list": b"/usr/lib/x/net.sh\n",
    }
    assert entry_of(files, "/usr/bin/app") == (Tier.C, {Kind.REACHES})


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=400), st.sampled_from(["python3", "perl", "ruby", "node", "lua", "php", "tclsh", "awk"]))
def test_any_text(text: str, name: str) -> None:
    found = language(name)
    assert all(imported(text, found))
    for entry in (*modules(text, found), *commands(text)):
        assert entry.detail.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "a=" * 40_000,
        "sudo " * 20_000,
        "import " + "a, " * 20_000,
        "gpg " * 20_000,
        " " * 80_000,
        "${a" * 20_000,
        "sudo -u x " * 20_000,
        "sh -c '" * 20_000,
        "a|" * 40_000,
        "in a)" * 20_000,
        "find -exec " * 20_000,
        "a() {\n" * 20_000,
        "x() {\nx\n}\n" * 20_000,
        ". $a/$a;" * 20_000,
        "\n".join(f"timeout {number} nice" for number in range(9_999)),
        "python " * 20_000,
    ],
)
def test_long_lines_take_no_time(text: str) -> None:
    begun = time.process_time()
    list(commands(text))
    list(read_files(text, "/"))
    divided(text)
    for name in ("python3", "perl", "node", "tclsh"):
        imported(text, language(name))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "text",
    ["(" * 100_000, "-" * 100_000 + "1", "a" + ".a" * 200_000, "if a:\n pass\n" + "elif a:\n pass\n" * 20_000, "\0"],
)
def test_what_the_parser_does_not_take_is_searched(text: str) -> None:
    begun = time.process_time()
    assert "socket" in imported(f"import os; from socket import(a)\n{text}\n", language("python3"))
    assert time.process_time() - begun < 5


def test_names_below_a_module() -> None:
    python = language("python3")
    assert is_network("http.server", python)
    assert is_network("asyncio", python)
    assert not is_network("urllib", python)
    assert not is_network("", python)


BASE: dict[str, Entry] = {
    "/bin": Link("usr/bin"),
    "/usr/bin/dash": program(elf()),
    "/usr/bin/sh": Link("dash"),
    "/usr/bin/strange": program(elf(imports=("socket",))),
    "/usr/bin/plain": program(elf()),
    "/usr/bin/env": program(elf()),
    "/opt/a/bin/elsewhere": Link("/usr/bin/plain"),
}


def entry_of(files: dict[str, Entry], path: str) -> tuple[Tier, set[Kind]] | None:
    entries = {entry.path: entry for entry in scan(root(BASE | files)).entries}
    found = entries.get(path)
    return None if found is None else (found.tier, {reason.kind for reason in found.evidence})


def test_a_script_and_its_own_modules() -> None:
    files: dict[str, Entry] = {
        "/usr/bin/app": program(b"#!/usr/bin/python3\nfrom app.cli import main\nmain()\n"),
        "/usr/lib/python3/dist-packages/app/__init__.py": b"import os\n",
        "/usr/lib/python3/dist-packages/app/net.py": b"import ssl\n",
        "/usr/lib/python3/dist-packages/app/cli.py": b"import sys\n",
    }
    assert entry_of(files, "/usr/bin/app") is None, "nothing imports app.net"
    for text in (b"import app.net", b"from app import net\n", b"from . import x, net\n", b"from .net import x\n"):
        files["/usr/lib/python3/dist-packages/app/cli.py"] = text
        assert entry_of(files, "/usr/bin/app") == (Tier.B, {Kind.MODULES}), text


def test_a_module_of_another_package_is_reported() -> None:
    stanza = b"Package: %s\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
    files: dict[str, Entry] = {
        "/usr/bin/app": program(b"#!/usr/bin/python3\nimport lib\n"),
        "/usr/lib/python3/dist-packages/lib.py": b"import socket\n",
        "/var/lib/dpkg/status": stanza % b"app" + stanza % b"lib",
        "/var/lib/dpkg/info/app.list": b"/usr/bin/app\n",
        "/var/lib/dpkg/info/lib.list": b"/usr/lib/python3/dist-packages/lib.py\n",
    }
    assert entry_of(files, "/usr/bin/app") == (Tier.C, {Kind.REACHES})


SIBLINGS = b"from app.cli import main\n", b"load_entry_point('app==1.0', 'console_scripts', 'app')()\n"


@pytest.mark.parametrize("text", SIBLINGS)
@pytest.mark.parametrize(
    ("source", "tier"), [(b"Source: app (1)\n", Tier.B), (b"Source: other\n", Tier.C), (b"", Tier.C)]
)
def test_modules_of_a_package_that_was_built_together_with_the_script(text: bytes, source: bytes, tier: Tier) -> None:
    stanza = b"Package: %s\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n%s\n"
    modules_ = "/usr/lib/python3/dist-packages"
    files: dict[str, Entry] = {
        "/usr/bin/app": program(b"#!/usr/bin/python3\n" + text),
        f"{modules_}/app/__init__.py": b"from app.cli import main\n",
        f"{modules_}/app/cli.py": b"from . import net\n",
        f"{modules_}/app/net.py": b"import ssl\n",
        "/var/lib/dpkg/status": stanza % (b"app", b"") + stanza % (b"python3-app", source),
        "/var/lib/dpkg/info/app.list": b"/usr/bin/app\n",
        "/var/lib/dpkg/info/python3-app.list": "".join(
            f"{modules_}/app/{name}.py\n" for name in ("__init__", "cli", "net")
        ).encode(),
    }
    found = entry_of(files, "/usr/bin/app")
    assert found is not None
    assert found[0] is tier


def test_what_was_built_together_and_is_only_used_counts_for_nothing() -> None:
    stanza = b"Package: %s\nSource: python3.13\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
    files: dict[str, Entry] = {
        "/usr/bin/pdb3": program(b"#!/usr/bin/python3\nimport cmd\n"),
        "/usr/lib/python3/dist-packages/cmd.py": b"import log\n",
        "/usr/lib/python3/dist-packages/log.py": b"import socket\n",
        "/var/lib/dpkg/status": stanza % b"python3.13" + stanza % b"libpython3.13-stdlib",
        "/var/lib/dpkg/info/python3.13.list": b"/usr/bin/pdb3\n",
        "/var/lib/dpkg/info/libpython3.13-stdlib.list": (
            b"/usr/lib/python3/dist-packages/cmd.py\n/usr/lib/python3/dist-packages/log.py\n"
        ),
    }
    assert entry_of(files, "/usr/bin/pdb3") == (Tier.C, {Kind.REACHES})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"#!/bin/sh\ncurl x\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/bin/sh\ntrue\n", None),
        (b"#!/bin/sh\ntrue\nexit\n\0\1\2", (Tier.B, {Kind.UNTOLD})),
        (b"curl x\n", (Tier.B, {Kind.COMMANDS})),
        (b"\0\1\2curl x\n", None),
        (b"#!/usr/bin/strange\nanything\n", (Tier.B, {Kind.UNTOLD})),
        (b"#!/usr/bin/plain\nanything\n", (Tier.B, {Kind.UNTOLD})),
        (b"#!/usr/bin/not-there\nanything\n", (Tier.C, {Kind.REACHES})),
        (b"#!/usr/bin/env not-there\nanything\n", (Tier.C, {Kind.REACHES})),
        (b"#!/usr/bin/env elsewhere\nanything\n", (Tier.B, {Kind.UNTOLD})),
        (b"#!/usr/bin/env -S -u\nanything\n", (Tier.B, {Kind.UNTOLD})),
        (b"#!/usr/bin/env -Sstrange -x\nanything\n", (Tier.B, {Kind.UNTOLD})),
        (b"#!/usr/bin/env -Spython3 -u\nimport socket\n", (Tier.B, {Kind.MODULES})),
        (b"#!/usr/sbin/nft -f\ntable inet a { chain b { tcp dport { ssh, http } accept\n } }\n", None),
        (b"#!/usr/bin/make -f\nall:\n\t@curl x | sh\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/usr/bin/make -f\nFETCH := curl\nall:\n\t-$(FETCH) x\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/usr/bin/make -f\nX = $(shell wget x)\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/usr/bin/make -f\nbuild:\n\tdh_auto_build -- curl=no\n", None),
        (b"#!/bin/sed -f\n1e curl x\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/usr/bin/dc\n!nc -l 1\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/usr/bin/m4\nsyscmd(`curl x')\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/sbin/openrc-run\nstart() {\n\twget x\n}\n", (Tier.B, {Kind.COMMANDS})),
        (b"#!/bin/busybox sh\nwget x\n", (Tier.B, {Kind.COMMANDS})),
    ],
)
def test_executable_texts(text: bytes, wanted: tuple[Tier, set[Kind]] | None) -> None:
    assert entry_of({"/usr/bin/x": program(text)}, "/usr/bin/x") == wanted


PYTHON = "/usr/lib/python3/dist-packages"


def test_a_module_that_is_a_library() -> None:
    files: dict[str, Entry] = {"/usr/bin/app": program(b"#!/usr/bin/python3\nfrom app import fast\n")}
    for name in ("fast.cpython-313-x86_64-linux-gnu.so", "fast.abi3.so", "fast.so"):
        for module, wanted in (
            (library("", ("socket",), ()), (Tier.B, {Kind.MODULES})),
            (library("", ("read",), ()), None),
            (b"\x7fELF and no more", (Tier.B, {Kind.UNTOLD})),
        ):
            layer = {f"{PYTHON}/app/__init__.py": b"", f"{PYTHON}/app/{name}": module}
            assert entry_of(files | layer, "/usr/bin/app") == wanted, name


def test_a_module_that_cannot_be_read() -> None:
    files: dict[str, Entry] = {"/usr/bin/app": program(b"#!/usr/bin/python3\nimport app.big\n")}
    for name in ("app/big.pyc", "app/big.py"):
        layer = {f"{PYTHON}/{name}": b"\x55\r\r\n\0\0\0compiled"}
        assert entry_of(files | layer, "/usr/bin/app") == (Tier.B, {Kind.UNTOLD}), name
    layer = {f"{PYTHON}/app/big.py": b"import os\n", f"{PYTHON}/app/big.pyc": b"\0"}
    assert entry_of(files | layer, "/usr/bin/app") is None
    layer = {f"{PYTHON}/app/big.py": b"#" * ((4 << 20) + 1)}
    assert entry_of(files | layer, "/usr/bin/app") == (Tier.B, {Kind.UNTOLD})


@pytest.mark.parametrize(("owned", "kind"), [(True, Kind.UNTOLD), (False, Kind.REACHES)])
def test_more_modules_than_are_read(owned: bool, kind: Kind) -> None:
    count = 1200
    stanza = b"Package: %s\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
    modules_: dict[str, Entry] = {f"{PYTHON}/m{at}.py": f"import m{at + 1}\n".encode() for at in range(count)}
    files: dict[str, Entry] = {
        "/usr/bin/app": program(b"#!/usr/bin/python3\nimport m0, other\n"),
        f"{PYTHON}/other.py": b"import socket\n",
        **modules_,
        "/var/lib/dpkg/status": stanza % b"app" + stanza % b"lib",
        "/var/lib/dpkg/info/app.list": "\n".join(("/usr/bin/app", *(modules_ if owned else ()))).encode(),
        "/var/lib/dpkg/info/lib.list": "\n".join((f"{PYTHON}/other.py", *modules_)).encode(),
    }
    if owned:
        files["/var/lib/dpkg/info/lib.list"] = f"{PYTHON}/other.py\n".encode()
    found = entry_of(files, "/usr/bin/app")
    assert found is not None
    assert found == ((Tier.B, {kind, Kind.REACHES}) if owned else (Tier.C, {kind}))


def test_more_commands_than_are_followed() -> None:
    unit = "[Service]\nExecStart=/bin/sh -c '{}'\n"
    for text, wanted in (("true;" * 400, Tier.C), ("true;" * 20_000, Tier.B)):
        files: dict[str, Entry] = {"/etc/systemd/system/a.service": unit.format(text).encode()}
        found = entry_of(files, "/usr/bin/dash")
        assert found is not None
        assert (found[0], Kind.UNTOLD in found[1]) == (wanted, wanted is Tier.B)
        # That the shell is documented must not excuse what it starts.
        unread = [(file.path, file.why) for file in scan(root(BASE | files)).unreadable]
        told = "it is given more than 10000 commands, and not all are followed"
        assert unread == ([("/usr/bin/dash", told)] if wanted is Tier.B else [])
