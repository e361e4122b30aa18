"""Gate `telemetry`: nothing leaves the machine that the profile does not allow, from power-on to power-off."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_osgates.checks.telemetry import GATE, TelemetryObservation, TelemetryPolicy
from pytest_osgates.fixtures.gate import Judge, NotProven
from pytest_osgates.model import Severity, State
from pytest_osgates.observers import telemetry
from pytest_osgates.observers.telemetry import declared
from pytest_osgates.run import Run
from pytest_osgates.states import Booted, boot
from pytest_osgates.vm.errors import OsgatesError
from pytest_osgates.vm.network.settings import TlsAnswer
from pytest_osgates.vm.spec import AccelKind

pytestmark = pytest.mark.telemetry


@pytest.fixture
def state(os_run: Run) -> State:
    """What the profile wants watched. Not `os_gate_state`, whose users share a machine and wait for each other."""
    return os_run.profile.gates["telemetry"].state


@pytest.fixture
def window_s(os_run: Run) -> float:
    """How long to watch: what the command line says, else what the profile demands."""
    policy: TelemetryPolicy = os_run.profile.policy("telemetry")
    return os_run.request.idle_s or policy.idle_s


@pytest.fixture
def watched(os_run: Run, state: State, window_s: float) -> Iterator[Booted]:
    """A machine of its own: the only one whose network answers, and is watched from power-on."""
    policy: TelemetryPolicy = os_run.profile.policy("telemetry")
    beside = Path(os_run.profile.source).absolute().parent
    firmware = os_run.profile.machine.firmware[0]
    with ExitStack() as stack:
        try:
            vpn, resolver = declared.vpn_of(policy, beside), declared.resolver_of(policy, beside)
            network = telemetry.settings_for(window_s, policy.cards, vpn, resolver, TlsAnswer(policy.tls))
            rtc = ""
            if os_run.request.time == "accelerated":
                if os_run.host.accelerator.kind is not AccelKind.TCG or state is not State.LIVE:
                    raise NotProven(
                        "idle time can be skipped under emulation, on the state live: use --iso-time real"
                    )
                rtc = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
            yield boot(
                *(os_run, stack, "telemetry", firmware),
                channel=True,
                state=state,
                network=network,
                rtc=rtc,
            )
        except OsgatesError as error:
            raise NotProven(f"the state {state} was not reached: {error}") from error


@pytest.fixture
def observation(
    watched: Booted, os_run: Run, state: State, window_s: float, pytestconfig: pytest.Config
) -> TelemetryObservation:
    """All that it sent."""
    if not watched.ready:
        raise NotProven(f"the state {state} was not reached: {watched.boot.outcome}: {watched.boot.detail}")
    policy: TelemetryPolicy = os_run.profile.policy("telemetry")

    def violations(seen: TelemetryObservation) -> int:
        return sum(finding.severity is Severity.VIOLATION for finding in GATE.judge(seen, policy))

    try:
        return telemetry.observe(
            telemetry.Watch(
                machine=watched.machine,
                state=state,
                window_s=window_s,
                names=policy.names == "dns",
                progress=os_run.progress,
                violations=violations,
                skipping=os_run.request.time == "accelerated",
                stop_early=pytestconfig.getoption("maxfail") == 1,
            )
        )
    except OsgatesError as error:
        raise NotProven(str(error)) from error


def test_telemetry(os_judge: Judge, observation: TelemetryObservation) -> None:
    """Every contact is allowed with a reason, and the silence between them is proven."""
    os_judge(observation)
