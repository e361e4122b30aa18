"""``osgates traffic F.pcap``: who talked with whom in any capture, with names and vendors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_osgates.checks import vendors
from pytest_osgates.checks.vendors import Vendor
from pytest_osgates.vm.capture.analysis import analyse
from pytest_osgates.vm.capture.flows import Flow, Query, Traffic
from pytest_osgates.vm.text import one_line

LISTED = 200


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "traffic",
        help="list the flows, names and vendors of a pcap or pcapng file",
        description="Lists who talked with whom in a capture. Exit status: 0, and 3 if it is damaged, cut short or"
        " holds packets that cannot be read (what could be read is listed all the same).",
    )
    parser.add_argument("file", type=Path, help="pcap or pcapng: Ethernet, raw IP or Linux cooked")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument("--all", action="store_true", help=f"every line, not the first {LISTED} of each table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """List the file; 3 where it is not whole.

    :raise CaptureError: it is no capture.
    """
    seen = analyse(options.file)
    if options.json:
        console.out(json.dumps(as_json(seen), indent=1), highlight=False)
    else:
        _print(seen, console, None if options.all else LISTED)
    return 3 if seen.problem or seen.overflow or seen.unparsed else 0


def vendor_of(names: tuple[str, ...], address: str) -> Vendor | None:
    """By any of the names, else by the address."""
    for name in names:
        if (vendor := vendors.of_name(name)) is not None:
            return vendor
    return vendors.of_address(address)


def _flow_vendor(flow: Flow) -> str:
    vendor = vendor_of(tuple(name for name, _ in flow.names), flow.dst)
    return vendor.name if vendor else ""


def _query_vendor(query: Query) -> str:
    vendor = vendor_of((query.name, *query.aliases), "")
    return vendor.name if vendor else ""


def as_json(seen: Traffic) -> dict[str, object]:
    """All of it; times are seconds since 1970."""
    return {
        "schema": 1,
        "packets": seen.packets,
        "octets": seen.octets,
        "first": seen.first,
        "last": seen.last,
        "problem": seen.problem or seen.overflow,
        "unparsed": seen.unparsed,
        "unparsed_examples": list(seen.unparsed_examples),
        "macs": seen.from_macs,
        "flows": [
            {
                **{name: getattr(flow, name) for name in ("protocol", "src", "sport", "dst", "dport")},
                "names": [{"name": name, "how": how} for name, how in flow.names],
                "vendor": _flow_vendor(flow),
                "applications": list(flow.applications),
                "notes": list(flow.notes),
                **{name: getattr(flow, name) for name in ("first", "last", "frame", "packets_out", "packets_in")},
                **{name: getattr(flow, name) for name in ("octets_out", "octets_in")},
            }
            for flow in seen.flows
        ],
        "queries": [
            {
                **{name: getattr(query, name) for name in ("name", "kind", "src", "server", "transport", "count")},
                "aliases": list(query.aliases),
                "vendor": _query_vendor(query),
                **{name: getattr(query, name) for name in ("first", "last", "frame")},
            }
            for query in seen.queries
        ],
        "facts": [
            {name: getattr(fact, name) for name in ("kind", "src", "details", "count", "first", "frame")}
            for fact in seen.facts
        ],
    }


def _print(seen: Traffic, console: Console, limit: int | None) -> None:
    begun = seen.first
    console.print(f"{seen.packets} packets, {seen.octets} bytes, {max(0.0, seen.last - begun):.1f} s")
    flows = Table(
        "at", "from", "to", "service", "name", "vendor", "packets", "bytes", "what", box=None, pad_edge=False
    )
    for flow in seen.flows[:limit]:
        names = ", ".join(dict.fromkeys(f"{name} ({how})" for name, how in flow.names))
        port = f":{flow.dport}" if flow.protocol in {"tcp", "udp"} else ""
        flows.add_row(
            *(f"{flow.first - begun:.1f}", _text(flow.src), _text(flow.dst), f"{flow.protocol}{port}", _text(names)),
            *(_flow_vendor(flow), f"{flow.packets_out}+{flow.packets_in}", f"{flow.octets_out}+{flow.octets_in}"),
            _text(", ".join((*flow.applications, *flow.notes))),
        )
    console.print(flows)
    if seen.queries:
        queries = Table("at", "asked for", "type", "of", "times", "vendor", box=None, pad_edge=False)
        for query in seen.queries[:limit]:
            queries.add_row(
                *(f"{query.first - begun:.1f}", _text(query.name), query.kind, _text(query.server)),
                *(str(query.count), _query_vendor(query)),
            )
        console.print()
        console.print(queries)
    left = 0 if limit is None else max(0, len(seen.flows) - limit) + max(0, len(seen.queries) - limit)
    if left:
        console.print(f"... and {left} more: --all")
    for what in (seen.problem and f"the capture {seen.problem}", seen.overflow):
        if what:
            console.print(Text(f"NOT WHOLE: {one_line(what)}"))
    if seen.unparsed:
        console.print(Text(f"NOT READ: {seen.unparsed} packets: {one_line('; '.join(seen.unparsed_examples), 600)}"))


def _text(text: str) -> Text:
    return Text(one_line(text, 200))
