"""Takes config, command line and sysctls from the booted kernel and lets kernel-hardening-checker look at them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib

from pydantic import ValidationError

from pytest_osgates.checks.kconfig import Check, ConfigSource, KconfigObservation, read_config_source
from pytest_osgates.evidence import Evidence
from pytest_osgates.image.rootfs import RootView
from pytest_osgates.model import State
from pytest_osgates.tools import Tool, check_there
from pytest_osgates.vm.errors import ChannelError, CommandFailed, HostError, ImageError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.process import run
from pytest_osgates.vm.text import one_line

MAX_CONFIG = 4 << 20
MAX_SYSCTLS = 4 << 20
_RELEASE = re.compile(r"^[A-Za-z0-9._+~-]{1,128}$")
_SYSCTL = re.compile(r"^[A-Za-z0-9_.:/@*-]{1,256}$")
_PROC_SYS = r"""cd /proc/sys && find . -type f -perm -0400 2>/dev/null | while read -r f; do
v=$(cat "$f" 2>/dev/null | tr '\n\t' '  ') || continue; printf '%s = %s\n' "${f#./}" "$v"; done"""


def observe(
    shell: GuestShell, image: RootView | ImageError | None, tool: Tool, evidence: Evidence, state: State
) -> KconfigObservation:
    """Ask the guest, run the checker on what it said; its inputs and output are kept in the evidence.

    `image` is where a config is looked for if the kernel does not show its own; an ImageError says why it cannot be.

    :raise ChannelError: the guest did not say what is needed.
    :raise HostError: the checker failed.
    """
    release = shell.run("uname -r").check().text.strip()
    if not _RELEASE.match(release):
        raise ChannelError(f"uname -r says {one_line(release)!r}")
    version = shell.read_file("/proc/version", max_size=4096).decode("utf-8", "replace").strip()
    command_line = shell.read_file("/proc/cmdline", max_size=1 << 16).decode("utf-8", "replace").strip()
    sysctls = _sysctls(shell)
    config, source, detail = _config(shell, image, release)
    checks: tuple[Check, ...] = ()
    if config is not None:
        checks = _check(tool, evidence, config, command_line, sysctls, version)
    return KconfigObservation(
        state=state,
        release=release,
        version=one_line(version, 500),
        command_line=command_line,
        config=source,
        detail=detail,
        sysctl_count=len(sysctls),
        checks=checks,
        tool=tool.name,
        tool_version=tool.version,
        tool_sha256=tool.sha256,
    )


def _sysctls(shell: GuestShell) -> dict[str, str]:
    done = shell.run("sysctl -a 2>/dev/null", timeout=180, max_output=MAX_SYSCTLS)
    text = done.text
    if len(text.splitlines()) < 100:
        # No procps in this image: the same files, read one by one.
        text = shell.run(_PROC_SYS, timeout=300, max_output=MAX_SYSCTLS).check().text.replace("/", ".")
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition(" = ")
        if equals and _SYSCTL.match(name):
            found[name] = one_line(value, 1000)
    return found


def _config(
    shell: GuestShell, image: RootView | ImageError | None, release: str
) -> tuple[bytes | None, ConfigSource | None, str]:
    """The config, where it is from, and why there is none."""
    if shell.run("test -r /proc/config.gz").status == 0:
        packed = shell.read_file("/proc/config.gz", max_size=MAX_CONFIG)
        return _named("/proc/config.gz", _gunzip(packed))
    path = f"/boot/config-{release}"
    if image is None:
        # An installed system is not the image: its own /boot is read, and named as what it is.
        if shell.run(f"test -r {path}").status == 0:
            return _named(f"guest:{path}", shell.read_file(path, max_size=MAX_CONFIG))
        return None, None, f"no /proc/config.gz, and no {path} on the disk"
    if isinstance(image, ImageError):
        return None, None, f"no /proc/config.gz, and the image cannot be read: {image.what}"
    try:
        data = image.read(path, MAX_CONFIG)
    except ImageError as error:
        return None, None, f"no /proc/config.gz, and {path} in the image: {error.what}"
    if data is None:
        return None, None, f"no /proc/config.gz, and no {path} in the image"
    return _named(f"image:{path}", data)


def _named(name: str, data: bytes) -> tuple[bytes, ConfigSource, str]:
    text = data.decode("utf-8", "replace")
    return data, read_config_source(name, text, hashlib.sha256(data).hexdigest()), ""


def _gunzip(packed: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            data = file.read(MAX_CONFIG + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ChannelError(f"/proc/config.gz is not gzip: {error}") from error
    if len(data) > MAX_CONFIG:
        raise ChannelError(f"/proc/config.gz holds more than {MAX_CONFIG} bytes")
    return data


def _check(
    tool: Tool, evidence: Evidence, config: bytes, command_line: str, sysctls: dict[str, str], version: str
) -> tuple[Check, ...]:
    inputs = {
        "config": config,
        "cmdline": (command_line.replace("\n", " ") + "\n").encode(),
        "sysctl": "".join(f"{name} = {value}\n" for name, value in sysctls.items()).encode(),
        "version": (version + "\n").encode(),
    }
    paths = {}
    for name, data in inputs.items():
        evidence.write(f"inputs/kconfig/{name}", data)
        paths[name] = str(evidence.root / "inputs/kconfig" / name)
    argv = [*tool.argv, "-m", "json", "-c", paths["config"], "-l", paths["cmdline"], "-s", paths["sysctl"]]
    argv += ["-v", paths["version"]]
    check_there(tool)
    try:
        done = run(argv, timeout=180, max_output=16 << 20)
    except CommandFailed as error:
        check_there(tool)
        raise HostError(
            f"{tool.name} {tool.version} refuses what the guest said: {one_line(error.output[-500:])}",
            remedy="its inputs are in the evidence under inputs/kconfig",
        ) from error
    check_there(tool)
    evidence.write("inputs/kconfig/result.json", done.stdout)
    return _parse(done.text, tool)


def _parse(text: str, tool: Tool) -> tuple[Check, ...]:
    """The checks in the tool's output: one line of it is a JSON list; others are remarks."""
    for line in text.splitlines():
        if line.startswith("["):
            try:
                entries = json.loads(line)
                return tuple(
                    Check(
                        option=str(entry["option_name"]),
                        type=entry["type"],
                        area=str(entry["reason"]),
                        decision=str(entry["decision"]),
                        wanted=str(entry["desired_val"]),
                        result=one_line(str(entry["check_result"]), 300),
                    )
                    for entry in entries
                )
            except (ValueError, KeyError, TypeError, ValidationError):
                continue
    raise HostError(
        f"{tool.name} {tool.version} printed no list of checks: {one_line(text[:300])!r}",
        remedy="give the pinned version with --iso-tool, or see inputs/kconfig in the evidence",
    )
