"""The command ``osgates``: what can be done without a pytest run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from pytest_osgates import _version
from pytest_osgates.vm.errors import OsgatesError, UsageError
from pytest_osgates.vm.text import printable

_COMMANDS = ("doctor", "demo_iso", "demo_disk", "baseline", "rejudge", "compare", "diff", "traffic", "networked")


def build_parser(chosen: str = "") -> argparse.ArgumentParser:
    """The parser of all subcommands; of one alone, if `chosen` is its name: the others are not even imported."""
    names = [name for name in _COMMANDS if name == chosen.replace("-", "_")] or _COMMANDS
    parser = argparse.ArgumentParser(
        prog="osgates", description="Launch gates for Linux distributions; the gates themselves: pytest --iso FILE"
    )
    parser.add_argument("--version", action="version", version=f"osgates {_version.VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in names:
        import_module(f"pytest_osgates.commands.{name}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit status. 4: wrong usage, 3: this host or the image, 130: interrupted; a subcommand
    may have one of its own for trouble.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser(given[0] if given else "").parse_args(given)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return int(options.run(options, Console(highlight=False)))
    except UsageError as error:
        errors.print(Text(f"osgates: {printable(str(error), 4000)}"))
        return int(getattr(options, "trouble", 4))
    except OsgatesError as error:
        errors.print(Text(f"osgates: {printable(str(error), 4000)}"))
        return int(getattr(options, "trouble", 3))
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        errors.print(Text("osgates: interrupted"))
        return 130


def entry_point() -> NoReturn:
    """For the installed script: SIGTERM and SIGHUP end it like Ctrl-C, so that everything is cleaned up."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    raise SystemExit(main(sys.argv[1:]))
