"""The private configuration of apt."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from pytest_osgates.debian import Archive, Mirror, PrivateApt, Suite
from pytest_osgates.debian.apt import configuration, sources
from pytest_osgates.vm.errors import CommandFailed, HostError, MissingTool, UsageError
from pytest_osgates.vm.process import run

MIRROR = Mirror("http://m.example/debian", "http://m.example/debian-security")
SUITES = (
    Suite("trixie"),
    Suite("trixie-security", Archive.SECURITY, ("main", "contrib"), optional=True),
)
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt on this host")


def test_golden_sources() -> None:
    keys = [Path("/k/a.gpg"), Path("/k/b.gpg")]
    assert sources(SUITES, MIRROR, "amd64", keys) == (
        "deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] http://m.example/debian trixie main\n"
        "deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] http://m.example/debian-security trixie-security main contrib\n"
    )


def test_golden_configuration() -> None:
    text = configuration(Path("/r"), "amd64", ['Acquire::http::Proxy "http://p.example";'])
    assert text == (
        'Dir::Etc::main "/dev/null";\n'
        'Dir::Etc::parts "/dev/null";\n'
        'Dir::Etc "/r/etc";\n'
        'Dir::Etc::sourcelist "/r/etc/sources.list";\n'
        'Dir::Etc::sourceparts "/r/etc/sources.list.d";\n'
        'Dir::Etc::preferences "/r/etc/preferences";\n'
        'Dir::Etc::preferencesparts "/r/etc/preferences.d";\n'
        'Dir::Etc::trusted "/r/etc/trusted.gpg";\n'
        'Dir::Etc::trustedparts "/r/etc/trusted.gpg.d";\n'
        'Dir::Etc::netrc "/r/etc/auth.conf";\n'
        'Dir::Etc::netrcparts "/r/etc/auth.conf.d";\n'
        'Dir::State "/r/state";\n'
        'Dir::State::status "/r/state/status";\n'
        'Dir::Cache "/r/cache";\n'
        'Dir::Log "/r/log";\n'
        'APT::Architecture "amd64";\n'
        'APT::Architectures { "amd64"; };\n'
        'APT::Install-Recommends "false";\n'
        'APT::Install-Suggests "false";\n'
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "2";\n'
        'Acquire::ForceHash "SHA256";\n'
        'Acquire::http::Timeout "60";\n'
        'APT::Update::Error-Mode "any";\n'
        'Dpkg::Use-Pty "false";\n'
        'Acquire::http::Proxy "http://p.example";\n'
    )


@pytest.fixture
def private(tmp_path: Path) -> PrivateApt:
    return PrivateApt(SUITES, mirror=MIRROR, keyrings=[tmp_path / "key.gpg"], root=tmp_path / "apt")


@needs_apt
def test_nothing_of_the_host_leaks_in(private: PrivateApt, tmp_path: Path) -> None:
    dump = private.run("apt-config", "dump").text
    directories = [
        line for line in dump.splitlines() if line.startswith(("Dir::Etc", "Dir::State", "Dir::Cache", "Dir::Log"))
    ]
    for line in directories:
        value = line.split('"')[1]
        assert not value.startswith("/etc"), line
        assert not value.startswith("/var"), line
    assert "Invoke" not in dump
    wanted = private.run("apt-get", "update", "--print-uris").text.splitlines()
    assert wanted
    assert all(line.startswith("'http://m.example/") for line in wanted)


@needs_apt
def test_its_files_are_whole_and_nothing_partial_is_left(private: PrivateApt) -> None:
    assert (private.root / "state/status").read_text() == ""
    assert (private.root / "etc/sources.list").read_text().count("\n") == 2
    assert not list(private.root.rglob(f".*.{os.getpid()}"))


@needs_apt
def test_what_apt_prints_is_split_by_archive(private: PrivateApt) -> None:
    split = private._split
    assert split("http://m.example/debian/pool/a_1%2bb1_all.deb") == (Archive.DEBIAN, "pool/a_1+b1_all.deb")
    assert split("http://m.example/debian-security/pool/x.deb") == (Archive.SECURITY, "pool/x.deb")
    with pytest.raises(HostError):
        split("http://elsewhere.example/debian/pool/x.deb")


@needs_apt
def test_an_optional_suite_of_an_unknown_archive_is_left_out(tmp_path: Path) -> None:
    apt = PrivateApt(SUITES, mirror=Mirror("http://m.example/x"), keyrings=[tmp_path / "k"], root=tmp_path / "apt")
    assert [suite.name for suite in apt.suites] == ["trixie"]


@needs_apt
def test_a_name_that_apt_cannot_quote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        PrivateApt(SUITES, mirror=MIRROR, keyrings=[tmp_path], root=tmp_path / 'a"b')


def test_without_apt_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(program: str, *, remedy: str | None = None) -> str:
        raise MissingTool(f"{program} is not installed", remedy=remedy)

    monkeypatch.setattr("pytest_osgates.debian.apt.which", absent)
    with pytest.raises(MissingTool, match="install the package apt"):
        PrivateApt(SUITES, mirror=MIRROR, keyrings=[tmp_path], root=tmp_path)


@needs_apt
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this host")
def test_a_closure_is_resolved_from_a_signed_or_trusted_local_archive(tmp_path: Path) -> None:
    """Against a file: mirror, so without a network: essential packages and dependencies, none recommended."""
    archive = tmp_path / "m/debian"
    index = []
    for name, extra in (
        ("base", "Essential: yes\n"),
        ("tool", "Depends: lib (>= 1)\nRecommends: more\n"),
        ("lib", ""),
        ("more", ""),
        ("unrelated", ""),
    ):
        package = tmp_path / f"{name}-root"
        (package / "DEBIAN").mkdir(parents=True)
        control = (
            f"Package: {name}\nVersion: 1:1.0+b1\nArchitecture: all\nMaintainer: A <a@example.org>\n{extra}"
            "Description: x\n"
        )
        (package / "DEBIAN/control").write_text(control)
        (package / "DEBIAN").chmod(0o755)
        path = archive / f"pool/main/{name}_1.0+b1_all.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        run(["dpkg-deb", "--build", "--root-owner-group", str(package), str(path)], timeout=60)
        content = path.read_bytes()
        index.append(
            f"{control}Filename: pool/main/{path.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    binary = archive / "dists/trixie/main/binary-amd64"
    binary.mkdir(parents=True)
    text = "\n".join(index).encode()
    (binary / "Packages").write_bytes(text)
    (archive / "dists/trixie/Release").write_text(
        "Suite: trixie\nCodename: trixie\nArchitectures: amd64 all\nComponents: main\nSHA256:\n"
        f" {hashlib.sha256(text).hexdigest()} {len(text)} main/binary-amd64/Packages\n"
    )
    apt = PrivateApt(
        [Suite("trixie"), Suite("trixie-gone", optional=True)],
        mirror=Mirror(f"file://{archive}"),
        keyrings=[tmp_path / "key.gpg"],
        root=tmp_path / "apt",
    )
    with pytest.raises(CommandFailed, match="OSGATES_DEBIAN_MIRROR"):
        apt.update()  # not signed by any key we trust: refused
    listing = apt.root / "etc/sources.list"
    listing.write_text(f"deb [arch=amd64 trusted=yes] file://{archive} trixie main\n")
    apt.run("apt-get", "update", "-q")
    assert [package.name for package in apt.resolve(["tool"])] == ["base", "lib", "tool"]
    assert [package.name for package in apt.resolve(["tool"], essential=False)] == ["lib", "tool"]
    (found,) = apt.locate(["more"])
    assert found.key == "more=1:1.0+b1"
    assert found.filename == "pool/main/more_1.0+b1_all.deb"
    assert apt.find("more", "1:1.0+b1") == found
    with pytest.raises(HostError, match=r"more 2 is not in trixie"):
        apt.find("more", "2")
