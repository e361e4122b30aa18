"""The talk at the serial console of a machine that asks for its passphrase: honest, hostile and broken guests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_osgates.checks.tpm_model import Answer, Outcome, TpmPolicy
from pytest_osgates.observers.tpm_talk import PROBE_TEXT, Login, Phrases, Talk, signs
from pytest_osgates.vm.errors import GuestFailed, MachineDied
from tests.unit.talk_samples import (
    ASKS,
    LOCKED,
    LOGIN,
    MAINTENANCE,
    REFUSES,
    Clock,
    Console,
    Guest,
    honest,
    journal_guest,
    shell_behind,
)
from tests.unit.tpm_samples import PASSPHRASE, TPM_POLICY


def talk_to(
    console: Console, policy: TpmPolicy = TPM_POLICY, alive: Callable[[], None] = lambda: None, seconds: float = 900.0
) -> Talk:
    end = console.clock.now + seconds
    return Talk(console, policy, alive, lambda: end - console.clock.now, 1.0)


def test_an_honest_machine(clock: Clock) -> None:
    console = Console(clock, ASKS, honest)
    talk = talk_to(console)
    assert talk.outcome() == (Outcome.ASKED, "Enter passphrase for /dev/vda2:")
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.REFUSED
    right = talk.unlock(PASSPHRASE)
    assert (right.answer, right.line) == (Answer.OPENED, "host login:")
    assert console.typed == [PROBE_TEXT, "", PASSPHRASE]
    assert talk.reasons == ("The TPM did not unlock the disk: policy digest does not match",)


def test_one_that_unlocks_by_itself(clock: Clock) -> None:
    console = Console(clock, b"Loading ...\r\n" + LOGIN)
    assert talk_to(console).outcome() == (Outcome.UNLOCKED, "host login:")
    assert console.typed == []


@pytest.mark.parametrize(
    ("shown", "outcome"),
    [
        (b"(initramfs) ", Outcome.SHELL),
        (b"BusyBox v1.37.0 (Debian 1:1.37.0-6) built-in shell (ash)\r\n", Outcome.SHELL),
        (b"sh-5.2# ", Outcome.SHELL),
        (b"\x1b[?2004hroot@host:~# ", Outcome.SHELL),
        (b"[root@host ~]# ", Outcome.SHELL),
        (b"/ # ", Outcome.SHELL),
        (b"dracut:/# ", Outcome.SHELL),
        (b"switch_root:/# ", Outcome.SHELL),
        (b"grub rescue> ", Outcome.STOPPED),
        (b'BdsDxe: failed to load Boot0002 "disk" from PciRoot(0x0): Access Denied\r\n', Outcome.STOPPED),
        (b"Kernel panic - not syncing: VFS\r\n", Outcome.STOPPED),
        ("\U0001f510 Please enter passphrase for disk QEMU (root): (press TAB for no echo) ".encode(), Outcome.ASKED),
        (b"Please unlock disk vda3_crypt: ", Outcome.ASKED),
        (b"Enter passphrase for hd0,gpt2 (5a3c): ", Outcome.ASKED),
        (b"host login: [   61.02] audit: something", Outcome.UNLOCKED),
        (LOCKED, Outcome.LOCKED),
        (b"Give root password for maintenance\r\n(or press Control-D to continue): ", Outcome.LOCKED),
        (MAINTENANCE, Outcome.EMERGENCY),
        (b"", Outcome.TIMEOUT),
        (b"Failed login: \r\nLast login: Mon\r\nlogin: \r\nWARNING: # of tries\r\n", Outcome.TIMEOUT),
        (b"A start job is running for /dev/disk/by-uuid/5 (1min / no limit)", Outcome.TIMEOUT),
    ],
)
def test_what_a_boot_shows(clock: Clock, shown: bytes, outcome: Outcome) -> None:
    talk = talk_to(Console(clock, b"Booting\r\n" + shown))
    assert talk.outcome()[0] is outcome


def test_a_prompt_that_the_profile_knows(clock: Clock) -> None:
    policy = TpmPolicy(pcrs=(7,), passphrase="x", prompts=(r"^Open sesame\? ?$",), login=r"^ready\.$")
    assert talk_to(Console(clock, b"Open sesame? "), policy).outcome()[0] is Outcome.ASKED
    assert talk_to(Console(clock, b"ready.\r\n"), policy).outcome()[0] is Outcome.UNLOCKED
    assert talk_to(Console(clock, LOGIN), policy, seconds=30).outcome()[0] is Outcome.TIMEOUT
    assert [sign.regex.pattern for sign in signs(policy) if sign.name == "login"] == [r"^ready\.$"]


def test_an_unfinished_line_is_not_yet_what_it_says(clock: Clock) -> None:
    console = Console(clock, b"host login:")
    console.pending.append((clock.now + 3.4, b"s are counted\r\n"))
    assert talk_to(console, seconds=60).outcome()[0] is Outcome.TIMEOUT


def test_a_blank_passphrase_that_opens(clock: Clock) -> None:
    console = Console(clock, ASKS, lambda text: LOGIN if not text else REFUSES)
    talk = talk_to(console)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert talk.guess("blank", "").answer is Answer.OPENED


def test_a_prompt_that_is_only_drawn_again_is_no_refusal(clock: Clock) -> None:
    """The passphrase is still tried: what it opens ten seconds later was opened by it."""

    def slow(text: str) -> bytes:
        console.pending.append((clock.now + 15, LOGIN))
        return b"\r\nPlease enter passphrase for disk root: "

    console = Console(clock, ASKS, slow)
    talk = talk_to(console)
    talk.outcome()
    assert talk.guess("blank", "").answer is Answer.OPENED


@pytest.mark.parametrize("late", [LOGIN, b"\r\nroot@host:~# ", b"\r\n/ # "])
def test_what_comes_just_before_the_next_word_counts(clock: Clock, late: bytes) -> None:
    """Whether as a line or as one that is not finished yet: it was a way in before the passphrase."""
    for again in (True, False):
        console = Console(clock, ASKS, lambda text: REFUSES if text == PROBE_TEXT else b"")
        talk = talk_to(console)
        talk.outcome()
        assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
        console.pending.append((clock.now, late))
        if again:
            assert talk.guess("blank", "").answer in (Answer.OPENED, Answer.SHELL)
        else:
            assert talk.unlock(PASSPHRASE).answer in (Answer.EARLY, Answer.SHELL)


def test_one_that_asks_again_without_a_word(clock: Clock) -> None:
    console = Console(clock, ASKS, lambda text: b"\r\nPlease enter passphrase for disk root: ")
    talk = talk_to(console)
    talk.outcome()
    tried = talk.guess("blank", "")
    assert tried.answer is Answer.ASKED_AGAIN
    assert tried.seconds >= TPM_POLICY.settle_s


@pytest.mark.parametrize(
    "guest",
    [
        lambda text: b"\r\nThe disk was not unlocked.\r\nHere is a shell\r\n/ # ",
        # A prompt that nobody knows: what it answers tells.
        lambda text: b"\r\n>>> " if text != PROBE_TEXT else b"\r\nosgates-42\r\n>>> ",
        lambda text: MAINTENANCE if text == "wrong" else shell_behind(text),
    ],
)
def test_a_shell_behind_a_wrong_passphrase(clock: Clock, guest: Guest) -> None:
    talk = talk_to(Console(clock, ASKS, guest))
    talk.outcome()
    text = "wrong" if guest("wrong") == MAINTENANCE else PROBE_TEXT
    assert talk.guess("wrong 1", text).answer is Answer.SHELL


def test_the_echo_of_what_was_typed_is_no_shell(clock: Clock) -> None:
    console = Console(clock, ASKS, lambda text: text.encode() + REFUSES)
    talk = talk_to(console)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED


def test_an_emergency_in_which_nobody_gets_a_shell(clock: Clock) -> None:
    console = Console(clock, ASKS, lambda text: LOCKED)
    talk = talk_to(console)
    talk.outcome()
    tried = talk.guess("blank", "wrong")
    assert tried.answer is Answer.LOCKED
    assert "root account is locked" in tried.line
    assert console.typed == ["wrong", "", PROBE_TEXT, PROBE_TEXT], "Enter was pressed, and a command tried"


def test_an_emergency_that_asks_for_roots_password(clock: Clock) -> None:
    password = b"\r\nGive root password for maintenance\r\n(or press Control-D to continue): "
    talk = talk_to(Console(clock, ASKS, lambda text: password))
    talk.outcome()
    assert talk.guess("blank", "").answer is Answer.LOCKED
    # And one whose root has none.
    talk = talk_to(Console(clock, ASKS, lambda text: password if text else b"\r\nroot@host:~# "))
    talk.outcome()
    assert talk.guess("wrong 1", "wrong").answer is Answer.SHELL


def test_an_emergency_of_which_nothing_is_known(clock: Clock) -> None:
    talk = talk_to(Console(clock, ASKS, lambda text: MAINTENANCE if text == "wrong" else b""))
    talk.outcome()
    assert talk.guess("wrong 1", "wrong").answer is Answer.TIMEOUT


def test_what_was_typed_too_early_is_typed_again(clock: Clock) -> None:
    deaf = [b"", b"", REFUSES]
    console = Console(clock, ASKS, lambda text: deaf.pop(0))
    talk = talk_to(console)
    talk.outcome()
    assert talk.guess("shell probe", PROBE_TEXT).answer is Answer.REFUSED
    assert console.typed == [PROBE_TEXT] * 3


def test_a_passphrase_at_which_it_works_is_typed_once(clock: Clock) -> None:
    def works(text: str) -> bytes:
        console.pending.append((clock.now + 200, LOGIN))
        return b"\r\nStarting things\r\n"

    console = Console(clock, ASKS, works)
    talk = talk_to(console)
    talk.outcome()
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    assert console.typed == [PASSPHRASE]


def test_a_right_passphrase_that_ends_in_an_emergency(clock: Clock) -> None:
    """Because it was refused, or because that is where the command line leads."""
    refused = talk_to(Console(clock, ASKS, lambda text: b"\r\nNo key available with this passphrase.\r\n" + LOCKED))
    assert refused.outcome()[0] is Outcome.ASKED
    assert refused.unlock("secret").answer is Answer.REFUSED
    opened = talk_to(Console(clock, ASKS, lambda text: b"\r\n" + LOCKED))
    assert opened.outcome()[0] is Outcome.ASKED
    assert opened.unlock("secret").answer is Answer.LOCKED


def test_an_emergency_that_enter_leads_out_of(clock: Clock) -> None:
    talk = talk_to(Console(clock, MAINTENANCE, lambda text: b"\r\nhost login: "))
    assert talk.outcome()[0] is Outcome.UNLOCKED


def test_the_right_passphrase_refused(clock: Clock) -> None:
    talk = talk_to(Console(clock, ASKS, lambda text: REFUSES))
    talk.outcome()
    assert talk.unlock(PASSPHRASE).answer is Answer.REFUSED


def test_a_silent_machine_is_undecided(clock: Clock) -> None:
    talk = talk_to(Console(clock, ASKS))
    talk.outcome()
    assert talk.guess("blank", "").answer is Answer.TIMEOUT
    assert talk.unlock(PASSPHRASE).answer is Answer.TIMEOUT


def test_a_machine_that_ends(clock: Clock) -> None:
    """Its last words count; QEMU's own death is the host's fault."""

    def dies() -> None:
        if clock.now > 110:
            raise GuestFailed("the machine was powered off by its guest after 10 s (guest-shutdown)")

    assert talk_to(Console(clock, b""), alive=dies).outcome()[0] is Outcome.ENDED
    clock.now = 100.0
    talk = talk_to(Console(clock, ASKS, lambda text: b""), alive=dies)
    assert talk.outcome()[0] is Outcome.ASKED
    tried = talk.guess("blank", "")
    assert (tried.answer, "powered off" in tried.line) == (Answer.ENDED, True)
    assert talk.unlock(PASSPHRASE).answer is Answer.ENDED

    def killed() -> None:
        raise MachineDied("QEMU was killed by signal 9")

    with pytest.raises(MachineDied):
        talk_to(Console(clock, b""), alive=killed).outcome()


def test_a_console_that_is_gone(clock: Clock) -> None:
    class Broken(Console):
        def send(self, data: bytes) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    talk = talk_to(Broken(clock, ASKS))
    assert talk.outcome()[0] is Outcome.ASKED
    assert talk.guess("blank", "").answer is Answer.ENDED


def test_a_flood_neither_hangs_nor_hides(clock: Clock) -> None:
    class Flood(Console):
        def take_unread(self, size: int, timeout: float) -> bytes:
            self.clock.now += 0.1
            self.dropped += 1
            return b"x" * size

    talk = talk_to(Flood(clock, b""), seconds=5.0)
    assert talk.outcome()[0] is Outcome.TIMEOUT
    assert talk.lost > 0


@pytest.mark.parametrize(
    ("guest", "told"),
    [
        (journal_guest(), True),
        (journal_guest(become=b"sudo"), True),
        (journal_guest(shown=b"\r\nosgates-journal-42\r\n# "), False),
        (journal_guest(shown=b""), False),
        (journal_guest(password=b"Login incorrect\r\n\r\nhost login: "), False),
    ],
)
def test_the_journal_is_asked_by_who_logs_in(clock: Clock, guest: Guest, told: bool) -> None:
    """What the console said before does not count then."""
    talk = talk_to(Console(clock, ASKS, guest))
    talk.outcome()
    assert talk.unlock(PASSPHRASE).answer is Answer.OPENED
    talk.ask_journal(Login("tester", "word", "sudo sh"))
    assert bool(talk.reasons) is told
    if told:
        assert "falling back" in talk.reasons[0]


def test_phrases() -> None:
    phrases = Phrases.of(TpmPolicy(pcrs=(7,), passphrase="x", wrong=("factory",)), "secret word")
    assert phrases.guesses == {"shell probe": PROBE_TEXT, "blank": "", "wrong 1": "factory"}
    assert "secret word" not in repr(phrases)


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [b"\r\n", b"\x1b[2J", b"\x1b]0;x", b"Enter passphrase for x: ", b"login: ", b"# ", LOCKED, b"\xf0\x9f"]
        ),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(pieces=PIECES, answers=PIECES)
def test_whatever_it_says_the_talk_ends_and_invents_no_login(
    clock: Clock, pieces: list[bytes], answers: list[bytes]
) -> None:
    console = Console(clock, b"".join(pieces), lambda text: b"".join(answers))
    talk = talk_to(console, seconds=120.0)
    begun = clock.now
    outcome, _ = talk.outcome()
    if outcome is Outcome.ASKED:
        assert talk.guess("blank", "").answer in Answer
        assert talk.unlock(PASSPHRASE).answer in Answer
    assert clock.now - begun < 1000
    shown = b"".join([*pieces, *answers])
    if b"login" not in shown:
        assert outcome is not Outcome.UNLOCKED
