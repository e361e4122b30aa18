"""Gate `tpm`: the untampered machine unlocks its disk by itself; after each tamper it asks for the passphrase."""

from pathlib import Path

import pytest

from pytest_osgates.checks.tpm_model import TpmObservation, TpmPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.fixtures.states import os_disk
from pytest_osgates.observers import tpm
from pytest_osgates.observers.tpm_talk import Login, Phrases
from pytest_osgates.progress import Step
from pytest_osgates.run import Run
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.spec import Firmware, MachineSpec

pytestmark = pytest.mark.tpm


@pytest.fixture
def observation(os_run: Run, os_case: str) -> TpmObservation:
    """Copies of the installed disk and of what lies beside it, tampered with, and booted."""
    section = os_run.profile.machine
    if section.firmware[0] is not Firmware.UEFI_SECUREBOOT:
        raise NotProven(
            f"the machine's first firmware is {section.firmware[0]}: nothing to tamper with\n"
            '  -> write firmware = ["uefi-secureboot"] into [machine] of the distro profile'
        )
    disk = os_disk(os_run)
    policy: TpmPolicy = os_run.profile.policy("tpm")
    login = os_run.profile.login if policy.reason == "journal" else None
    if policy.reason == "journal" and login is None:
        raise NotProven(
            "nobody may read the journal\n"
            '  -> write [login] into the distro profile, or reason = "console" into [gate.tpm]'
        )

    def spec(name: str, home: Home, with_tpm: bool) -> MachineSpec:
        return MachineSpec(
            name=name,
            firmware=section.firmware[0],
            home=home,
            memory_mib=section.memory_mib,
            cpus=section.cpus,
            cpu_model=section.cpu_model,
            tpm=with_tpm,
        )

    def records(role: str) -> Path:
        return os_run.evidence.machine(f"tpm-{os_case}-{role}")

    def say(stage: str, seconds: float) -> None:
        os_run.progress.step(Step(f"tpm-{os_case}", stage, seconds, policy.deadline_s * os_run.host.pace))

    row = tpm.Row(
        case=os_case,
        policy=policy,
        phrases=Phrases.of(policy, tpm.passphrase(policy), tpm.pin(policy)),
        spec=spec,
        host=os_run.host,
        records=records,
        say=say,
        directory=Path(os_run.profile.source).absolute().parent,
        login=None if login is None else Login(login.user, login.password, login.become),
    )
    return tpm.observe(Home.beside(disk.path), row, disk.sha256)


def test_tpm(os_judge: Judge, observation: TpmObservation) -> None:
    """Prompt, refusal, unlocking, and no third way in."""
    os_judge(observation)
