"""States: how far a machine has come. Each is made once in a session, and kept until its end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.model import State
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.progress import Step
from pytest_osgates.run import Run
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.guest.injection import Injection, new_nonce
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.spec import AccelKind, Firmware, MachineSpec

DEFAULT_DEADLINE_S = 900.0
# Most requests are answered before anybody could read what is waited for.
SHOWN_AFTER_SECONDS = 3.0


class Booted:
    """A machine and its boot. `ready`: it reached its ready target, over the channel if it has one."""

    def __init__(self, boot: Boot, ready: bool) -> None:
        self.boot = boot
        self.machine = boot.machine
        self.ready = ready


def machine_spec(
    run: Run,
    name: str,
    firmware: Firmware,
    *,
    channel: bool,
    state: State,
    network: tuple[Settings, ...] = (),
    rtc: str = "",
) -> MachineSpec:
    """The machine that the profile asks for.

    :raise UsageError: the state needs a disk and none was given.
    """
    section = run.profile.machine
    if state is State.INSTALLED and run.disk is None:
        raise UsageError(
            "the state 'installed' was not reached: no disk with an installed system",
            remedy="give one with --iso-disk FILE (raw or qcow2; it is not written)",
        )
    nonce = new_nonce() if channel else None
    return MachineSpec(
        name=name,
        firmware=firmware,
        cdrom=run.request.iso if state is State.LIVE else None,
        disks=() if state is State.LIVE or run.disk is None else (run.disk.path,),
        memory_mib=section.memory_mib,
        # Counting instructions, several processors do not agree on the pace of their clocks while they start.
        cpus=1 if rtc else section.cpus,
        cpu_model=section.cpu_model,
        tpm=section.tpm,
        channel=nonce,
        smbios_strings=() if nonce is None else Injection(nonce).smbios_strings(),
        network=network,
        rtc=rtc,
    )


def deadline(run: Run) -> float:
    """Seconds that a boot may take on this host: the boot gate's policy, or its default where the profile has no such
    gate, at the pace that was measured here."""
    section = run.profile.gates.get("boot")
    policy = None if section is None else section.policy
    chosen = policy.deadline_s if isinstance(policy, boot_check.BootPolicy) else DEFAULT_DEADLINE_S
    return chosen * run.host.pace


def _show_wait(run: Run, case: str, machine: Machine) -> None:
    waited = time.monotonic() - machine.shell.asking_since
    if machine.shell.asking and waited > SHOWN_AFTER_SECONDS:
        run.progress.step(Step(case, f"the guest works on: {machine.shell.asking}", waited))


def boot(
    run: Run,
    stack: ExitStack,
    case: str,
    firmware: Firmware,
    *,
    channel: bool,
    state: State,
    network: tuple[Settings, ...] = (),
    rtc: str = "",
) -> Booted:
    """Power a machine on and wait until it is ready or has failed; `stack` ends it. `network`: its sinkholes. `rtc`:
    where its clock begins, which then counts virtual time; the sinkholes go by it.

    :raise OsgatesError: the host's fault: nothing is known of the guest.
    """
    records = run.evidence.machine(case)
    # What goes through a tunnel is captured by the sinkhole itself, and is stamped as QEMU stamps the rest.
    if rtc or any(settings.vpn is not None for settings in network):
        network = tuple(
            replace(settings, capture=str((records / f"net{index}.pcap").absolute()))
            for index, settings in enumerate(network)
        )
    spec = machine_spec(run, case, firmware, channel=channel, state=state, network=network, rtc=rtc)
    patterns = boot_check.patterns(emulated=run.host.accelerator.kind is AccelKind.TCG)
    machine = stack.enter_context(Machine(spec, run.host, records, patterns))
    if spec.channel is not None:
        machine.on_silence = lambda: _show_wait(run, case, machine)
    booting = Boot(machine, Plan(case, run.profile.boot, run.profile.login, deadline(run)), run.progress)
    return Booted(booting, booting.run())
