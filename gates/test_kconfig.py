"""Gate `kconfig`: the kernel as it runs, judged by the pinned kernel-hardening-checker."""

import pytest

from pytest_osgates import tools
from pytest_osgates.checks.kconfig import KconfigObservation
from pytest_osgates.fixtures.gate import Judge
from pytest_osgates.image.rootfs import RootView, open_root
from pytest_osgates.model import State
from pytest_osgates.observers import kconfig
from pytest_osgates.run import Run
from pytest_osgates.tools import Tool
from pytest_osgates.vm.errors import ImageError
from pytest_osgates.vm.guest.channel import GuestShell

pytestmark = pytest.mark.kconfig


@pytest.fixture
def checker(os_run: Run) -> Tool:
    """kernel-hardening-checker, before any boot: a missing tool is known at once."""
    return tools.find("kernel-hardening-checker", os_run.request.tools)


@pytest.fixture
def observation(checker: Tool, os_run: Run, os_gate_state: State, os_shell: GuestShell) -> KconfigObservation:
    """The kernel of the state that the profile names."""
    image: RootView | ImageError | None = None
    if os_gate_state is State.INSTALLED:
        return kconfig.observe(os_shell, image, checker, os_run.evidence, os_gate_state)
    try:
        with open_root(os_run.request.iso) as view:
            return kconfig.observe(os_shell, view, checker, os_run.evidence, os_gate_state)
    except ImageError as error:
        image = error
    return kconfig.observe(os_shell, image, checker, os_run.evidence, os_gate_state)


def test_kconfig(os_judge: Judge, observation: KconfigObservation) -> None:
    """Every failed check, and every kernel parameter, is accepted by the profile or a finding."""
    os_judge(observation)
