"""``osgates demo-disk``: the demo's installed disk, sound or weakened; with a TPM it takes one boot."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pytest_osgates.commands.progress import bar
from pytest_osgates.demo import build_demo_disk, cached_demo_iso
from pytest_osgates.demo.disk_variants import load_disk_file
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.demo.uki import KEY, PCR_KEY
from pytest_osgates.run import existing_file
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.host import measure_pace, select


def add_parser(commands: Any) -> None:  # noqa: ANN401  (argparse's private type)
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo-disk",
        help="make the demo's installed disk",
        description="Makes a disk with the demo encrypted on it (LUKS2), without root and without booting anything;"
        " its passphrase is printed. With --weak, one that the gate `luks` must refuse. With --tpm, a directory with"
        " disk, firmware variables and a TPM that opens it, for the gate `tpm`: that takes one boot.",
    )
    parser.add_argument(
        "-o", "--output", metavar="F", type=Path,
        help="where to; .qcow2, or any other name for a raw image (default: osgates-demo.qcow2); with --tpm, a new"
        " directory (default: osgates-demo-machine)",
    )  # fmt: skip
    parser.add_argument("--tpm", action="store_true", help="a whole machine, whose TPM opens its disk")
    parser.add_argument("--pin", action="store_true", help="with --tpm: the TPM wants a PIN as well")
    parser.add_argument("--screen", action="store_true", help="it asks on its screen, not on the serial console")
    parser.add_argument(
        "--plymouth", action="store_true", help="with --tpm: it asks on its screen, by Plymouth (fetched from Debian)"
    )
    parser.add_argument(
        "--uki", action="store_true",
        help="with --tpm: it starts a unified kernel image, by systemd-stub, with keys of its own in the firmware",
    )  # fmt: skip
    parser.add_argument(
        "--signed-pcrs", action="store_true",
        help="with --uki: PCR 11 is bound by a policy that a key of its own signs, in the image (.pcrsig)",
    )  # fmt: skip
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="accelerator of that boot (default: auto)"
    )
    parser.add_argument("--weak", metavar="NAME", help="weaken it (see --list-weak)")
    parser.add_argument("--iso", metavar="F", help="the demo's ISO (default: the one in the cache, built if need be)")
    parser.add_argument("--list-weak", action="store_true", help="list the weakened disks and what must find them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Make it, and print passphrase, digest and path.

    :raise OsgatesError: it cannot be made; the remedy is in the message.
    """
    spec = load_disk_file()
    if options.list_weak:
        table = Table("disk", "must be found by", "what is wrong with it", box=None)
        for variant in spec.variant:
            expects = variant.expects
            table.add_row(variant.name, f"{expects.gate}: {expects.rule} {expects.subject}", variant.title)
        console.print(table)
        return 0
    weak = spec.named(options.weak) if options.weak is not None else None
    if weak is not None and (weak.expects.gate == "tpm") is not options.tpm:
        raise UsageError(
            f"the weakened disk {weak.name!r} is for the gate {weak.expects.gate}",
            remedy="leave --tpm out" if options.tpm else "add --tpm",
        )
    if options.pin and (not options.tpm or weak is not None):
        raise UsageError(
            "only the sound machine of --tpm has a PIN", remedy="leave --weak out" if options.tpm else "add --tpm"
        )
    if options.plymouth and (not options.tpm or options.pin):
        raise UsageError(
            "only the machine of --tpm, without a PIN, asks by Plymouth",
            remedy="leave --pin out" if options.tpm else "add --tpm",
        )
    if options.uki and (not options.tpm or options.pin):
        raise UsageError(
            "only the machine of --tpm, without a PIN, has a unified kernel image",
            remedy="leave --pin out" if options.tpm else "add --tpm",
        )
    if options.signed_pcrs and (not options.uki or weak is not None):
        raise UsageError(
            "only the sound machine of --uki has a policy that is signed",
            remedy="leave --weak out" if options.uki else "add --tpm --uki",
        )
    if weak is not None and weak.uki is not options.uki:
        raise UsageError(
            f"the weakened disk {weak.name!r} is of the machine {'with' if weak.uki else 'without'} --uki",
            remedy="add --uki" if weak.uki else "leave --uki out",
        )
    output = (options.output or Path("osgates-demo-machine" if options.tpm else "osgates-demo.qcow2")).absolute()
    if output.is_dir() and not options.tpm:
        raise UsageError(f"{output} is a directory", remedy="give the name of a file")
    if not output.parent.is_dir():
        raise UsageError(f"the directory {output.parent} is not there")
    given = existing_file(options.iso, "--iso") if options.iso else None
    with bar(console) as progress:
        iso = cached_demo_iso(progress) if given is None else given
        if options.tpm:
            host = select(options.accel, None)
            host = replace(host, pace=measure_pace(host.qemu, host.accelerator))
            machine = build_demo_machine(
                iso,
                output,
                progress,
                host,
                weak,
                pin=options.pin,
                uki=options.uki,
                signed_pcrs=options.signed_pcrs,
                screen=options.screen,
                plymouth=options.plymouth,
            )
            built = machine.disk
        else:
            built = build_demo_disk(iso, output, progress, weak, screen=options.screen)
    try:
        shown = built.passphrase.decode("ascii")
    except UnicodeDecodeError:
        shown = f"(hexadecimal) {built.passphrase.hex()}"
    console.print(f"passphrase: {shown}", markup=False, soft_wrap=True)
    if options.tpm:
        if options.pin:
            console.print(f"PIN: {spec.pin}", markup=False, soft_wrap=True)
        pcrs = ", ".join(map(str, machine.token.pcrs)) or "none"
        if options.uki:
            console.print(f"key that signs its image: {built.path.parent / KEY}", markup=False, soft_wrap=True)
        console.print(f"bound to PCRs: {pcrs}", markup=False, soft_wrap=True)
        if options.signed_pcrs:
            by_policy = ", ".join(map(str, machine.token.signed_pcrs))
            key = built.path.parent / PCR_KEY
            console.print(f"bound by a signed policy to PCRs: {by_policy}", markup=False, soft_wrap=True)
            console.print(f"key that signs it: {key}", markup=False, soft_wrap=True)
    console.print(f"sha256: {built.sha256}", markup=False, soft_wrap=True)
    console.print(str(built.path), markup=False, soft_wrap=True)
    return 0
