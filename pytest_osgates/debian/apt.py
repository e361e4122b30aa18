"""A private apt: its own sources, lists, cache and status, below the user's cache. The host's stays as it is."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote

from pytest_osgates.debian.control import locked, stanzas
from pytest_osgates.debian.mirror import Mirror, discover_mirror, host_proxies
from pytest_osgates.debian.model import Archive, LockedPackage, Suite
from pytest_osgates.paths import alone, cache_dir, caching
from pytest_osgates.vm.errors import CommandFailed, HostError, MissingTool, UsageError
from pytest_osgates.vm.process import Completed, run, which

_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)
_KEYRING_REMEDY = "install the package debian-archive-keyring"
_APT_REMEDY = "install the package apt (only Debian and its derivatives have it)"
_HELPER = "/usr/lib/apt/apt-helper"
_NETWORK_REMEDY = "is the mirror reachable? OSGATES_DEBIAN_MIRROR names another one"
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>[0-9]+)(?: (?P<hash>\S*))?$")


def default_keyrings() -> tuple[Path, ...]:
    """:raise MissingTool: the host does not have Debian's archive keys."""
    for candidate in map(Path, _KEYRINGS):
        if candidate.is_file():
            return (candidate,)
    raise MissingTool("the keys of Debian's archive are not installed", remedy=_KEYRING_REMEDY)


def configuration(root: Path, architecture: str, proxies: Sequence[str] = ()) -> str:
    """The apt.conf(5) of a private apt at `root`. It is read first (APT_CONFIG) and turns all others off."""
    lines = [
        # Dir::Etc::main and parts decide which further files are read: none of the host's.
        'Dir::Etc::main "/dev/null";',
        'Dir::Etc::parts "/dev/null";',
        f'Dir::Etc "{root}/etc";',
        f'Dir::Etc::sourcelist "{root}/etc/sources.list";',
        f'Dir::Etc::sourceparts "{root}/etc/sources.list.d";',
        f'Dir::Etc::preferences "{root}/etc/preferences";',
        f'Dir::Etc::preferencesparts "{root}/etc/preferences.d";',
        f'Dir::Etc::trusted "{root}/etc/trusted.gpg";',
        f'Dir::Etc::trustedparts "{root}/etc/trusted.gpg.d";',
        f'Dir::Etc::netrc "{root}/etc/auth.conf";',
        f'Dir::Etc::netrcparts "{root}/etc/auth.conf.d";',
        f'Dir::State "{root}/state";',
        f'Dir::State::status "{root}/state/status";',
        f'Dir::Cache "{root}/cache";',
        f'Dir::Log "{root}/log";',
        f'APT::Architecture "{architecture}";',
        f'APT::Architectures {{ "{architecture}"; }};',
        'APT::Install-Recommends "false";',
        'APT::Install-Suggests "false";',
        # The cache belongs to this user alone; apt's own user could not even enter it.
        'APT::Sandbox::User "root";',
        'Acquire::Languages "none";',
        'Acquire::Retries "2";',
        'Acquire::ForceHash "SHA256";',
        'Acquire::http::Timeout "60";',
        'APT::Update::Error-Mode "any";',
        'Dpkg::Use-Pty "false";',
    ]
    return "\n".join([*lines, *proxies]) + "\n"


def sources(suites: Sequence[Suite], mirror: Mirror, architecture: str, keyrings: Sequence[Path]) -> str:
    """The sources.list(5), one line a suite."""
    options = f"[arch={architecture} signed-by={','.join(map(str, keyrings))}]"
    return "".join(
        f"deb {options} {mirror.base(suite.archive)} {suite.name} {' '.join(suite.components)}\n" for suite in suites
    )


# Whoever holds apt's lock is bound by apt's deadlines: two updates and some questions.
LOCK_SECONDS = 900.0


class PrivateApt:
    """apt with a configuration of its own. Any user can use it; several processes may at once.

    :raise UsageError: no mirror is known, or a suite's archive is not.
    :raise MissingTool: apt or Debian's archive keys are not installed.
    """

    def __init__(
        self,
        suites: Sequence[Suite],
        *,
        architecture: str = "amd64",
        mirror: Mirror | None = None,
        keyrings: Sequence[Path] | None = None,
        root: Path | None = None,
    ) -> None:
        if not suites:
            raise UsageError("a private apt needs at least one suite")
        which("apt-get", remedy=_APT_REMEDY)
        self.architecture = architecture
        self.mirror = mirror or discover_mirror()
        self.keyrings = tuple(keyrings) if keyrings is not None else default_keyrings()
        self.suites = tuple(
            suite
            for suite in suites
            if not (suite.optional and suite.archive is Archive.SECURITY and self.mirror.security is None)
        )
        listing = sources(self.suites, self.mirror, architecture, self.keyrings)
        self.root = root or cache_dir("apt", hashlib.sha256(listing.encode()).hexdigest()[:16])
        if re.search(r'["\\\x00-\x1f]', str(self.root)) is not None:
            raise UsageError(f"apt cannot use a directory of this name: {self.root}", remedy="set XDG_CACHE_HOME")
        self._conf = self.root / "apt.conf"
        with caching("apt's configuration"):
            self._write(self.suites)

    def _write(self, suites: Sequence[Suite]) -> None:
        for name in (
            *("etc/sources.list.d", "etc/preferences.d", "etc/trusted.gpg.d", "etc/auth.conf.d"),
            *("state/lists/partial", "cache/archives/partial", "log"),
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        listing = sources(suites, self.mirror, self.architecture, self.keyrings)
        for path, text in (
            (self.root / "state/status", ""),
            (self.root / "etc/sources.list", listing),
            (self._conf, configuration(self.root, self.architecture, host_proxies())),
        ):
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)

    def _alone(self) -> AbstractContextManager[None]:
        return alone(self.root / "lock", LOCK_SECONDS)

    def _env(self) -> dict[str, str]:
        passed = ("PATH", "HOME", "http_proxy", "https_proxy", "no_proxy", "TMPDIR")
        kept = {name: os.environ[name] for name in passed if name in os.environ}
        return {**kept, "APT_CONFIG": str(self._conf), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def run(self, *argv: str, timeout: float = 120.0, check: bool = True) -> Completed:
        """Run a program of apt's with this configuration."""
        return run(argv, timeout=timeout, env=self._env(), check=check, remedy=_NETWORK_REMEDY)

    def update(self) -> None:
        """Fetch the indices; apt verifies their signatures. Optional suites the mirror lacks are left out.

        :raise CommandFailed: a suite cannot be fetched or is not signed by a key of `keyrings`.
        """
        with self._alone():
            self._write(self.suites)
            try:
                self.run("apt-get", "update", "-q", timeout=300)
            except CommandFailed:
                required = tuple(suite for suite in self.suites if not suite.optional)
                if len(required) == len(self.suites):
                    raise
                self._write(required)
                self.run("apt-get", "update", "-q", timeout=300)
                self.suites = required

    def resolve(self, names: Sequence[str], *, essential: bool = True) -> list[LockedPackage]:
        """All that an empty system needs for `names`, sorted by name; with `essential` the essential ones too.

        A name may be ``name=version`` or ``name/suite``. Recommended packages are not taken.

        :raise HostError: a name is unknown, or the dependencies cannot be met.
        """
        wanted = [*(["?essential"] if essential else []), *names]
        return self._located(wanted, "install")

    def locate(self, names: Sequence[str]) -> list[LockedPackage]:
        """Just these packages (``name`` or ``name=version``), without their dependencies, in this order."""
        return [self._one(name) for name in names]

    def _one(self, name: str) -> LockedPackage:
        found = self._located([name], "download")
        if len(found) != 1:
            raise HostError(f"{name} names {len(found)} packages")
        return found[0]

    def _located(self, names: Sequence[str], verb: str) -> list[LockedPackage]:
        with self._alone():
            text = self.run("apt-get", verb, "--print-uris", "-qq", "--yes", *names).text
            keys: dict[str, Archive] = {}
            for line in text.splitlines():
                match = _URI_LINE.match(line)
                if match is None:
                    continue
                archive, filename = self._split(match["uri"])
                keys[filename] = archive
            return self._described(keys) if keys else []

    def _split(self, uri: str) -> tuple[Archive, str]:
        # The longer base first: ".../debian" is also the beginning of ".../debian-security".
        bases = sorted(
            ((self.mirror.base(archive), archive) for archive in {suite.archive for suite in self.suites}),
            key=lambda pair: -len(pair[0]),
        )
        for base, archive in bases:
            # apt prints file:///srv as file:/srv.
            shown = re.sub(r"^(file|copy)://(?=/)", r"\1:", base)
            for prefix in (f"{base}/", f"{shown}/"):
                if uri.startswith(prefix):
                    return archive, unquote(uri[len(prefix) :]).lstrip("/")
        raise HostError(f"apt wants a file from elsewhere: {uri}")

    def _described(self, wanted: dict[str, Archive]) -> list[LockedPackage]:
        """By their stanza in the verified index: it has SHA-256 and size whatever --print-uris prints."""
        # The version in a file's name lacks the epoch, so all versions are asked for; Filename tells which it is.
        keys = sorted({filename.rsplit("/", 1)[1].split("_")[0] for filename in wanted})
        text = self.run("apt-cache", "show", *keys).text
        found: dict[str, LockedPackage] = {}
        for fields in stanzas(text):
            filename = fields.get("Filename", "")
            if filename in wanted:
                found[filename] = locked(fields, wanted[filename])
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise HostError(f"apt's indices do not describe: {', '.join(missing)}")
        return sorted(found.values(), key=lambda package: (package.name, package.architecture))

    def find(self, name: str, version: str) -> LockedPackage:
        """Exactly this version.

        :raise HostError: the suites no longer carry it.
        """
        try:
            return self._one(f"{name}={version}")
        except CommandFailed as error:
            suites = ", ".join(suite.name for suite in self.suites)
            carried = self.run("apt-cache", "madison", name, check=False).text.strip() or "nothing"
            raise HostError(
                f"{name} {version} is not in {suites}, which carry:\n{carried}",
                remedy="pin a version that is there, or name a mirror that keeps old ones",
            ) from error

    def download(self, items: Sequence[tuple[LockedPackage, Path]]) -> str:
        """Fetch each package to its path; apt checks the digest. What it says is returned for error messages.

        A file that could not be fetched is simply not there: the caller looks.

        :raise MissingTool: apt's helper is not where Debian keeps it.
        """
        if not Path(_HELPER).is_file():
            raise MissingTool(f"{_HELPER} is not there", remedy=_APT_REMEDY)
        argv: list[str] = []
        for package, path in items:
            argv += [self.mirror.url(package.archive, package.filename), str(path), f"SHA256:{package.sha256}"]
        megabytes = sum(package.size for package, _ in items) / 1e6
        done = self.run(_HELPER, "download-file", *argv, timeout=120 + megabytes * 5, check=False)
        return done.stderr.decode("utf-8", "replace")
