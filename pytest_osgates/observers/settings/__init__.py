"""Asks a guest for everything that the policy of the gate `settings` needs to know of it."""

from __future__ import annotations

from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.facts import SettingsObservation
from pytest_osgates.model import State
from pytest_osgates.observers.settings import parse, parse_many
from pytest_osgates.observers.settings.answers import Answers, read
from pytest_osgates.observers.settings.script import MAX_TABLE, build
from pytest_osgates.vm.guest.channel import GuestShell

TIMEOUT = 300.0
MAX_OUTPUT = 24 << 20
# One argument of a program is at most 128 KiB (execve(2)), and the channel's own quoting makes it longer.
MAX_ARGUMENT = 48 << 10


def observe(shell: GuestShell, questions: Questions, state: State, nonce: str, directory: str) -> SettingsObservation:
    """Ask, and take the answer apart. Processes that carry `nonce` are the channel's own, and are left out.

    `directory`: the channel's own in the guest, where it may write.

    :raise ChannelError: the guest did not answer, or not as asked.
    """
    script = build(questions, nonce=nonce, directory=f"{directory}/settings")
    if len(script.encode()) > MAX_ARGUMENT:
        path = f"{directory}/settings.sh"
        shell.write_file(path, script.encode())
        script = f"exec sh {path}"
    done = shell.run(script, timeout=TIMEOUT, max_output=MAX_OUTPUT, shown="what the profile demands of it").check()
    return facts(read(done.stdout), questions, state)


def facts(answers: Answers, questions: Questions, state: State, root: str = "") -> SettingsObservation:
    """The observation that these answers to `questions` make."""
    return SettingsObservation(
        state=state,
        sysctls=parse.sysctls(answers, questions.sysctls),
        command_line=parse.text_of(answers, "cmdline", MAX_TABLE) if questions.command_line else None,
        units=parse.units(answers, list(questions.units)),
        files=parse.files(answers, questions, root),
        mounts=parse.mounts(answers) if questions.mounts else None,
        accounts=parse_many.accounts(answers) if questions.accounts else None,
        packages=parse_many.packages(answers) if questions.packages else None,
        processes=parse_many.processes(answers, questions, root) if questions.libraries else None,
        selinux=parse.selinux(answers) if questions.selinux else None,
        lockdown=parse.lockdown(answers) if questions.lockdown else None,
    )
