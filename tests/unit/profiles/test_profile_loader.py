"""Distro profiles: what is wrong in one is said by its key and with the nearest word that is known."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

import pytest

from pytest_osgates.checks.boot import BootPolicy
from pytest_osgates.checks.kconfig import KconfigPolicy
from pytest_osgates.checks.registry import GATES
from pytest_osgates.model import Acceptance, Model, State
from pytest_osgates.profiles import loader, source
from pytest_osgates.profiles.schema import KNOWN_GATES
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.spec import Firmware

HEAD = 'schema = 1\nname = "p"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.toml"


def refused(path: Path, text: str | bytes) -> str:
    """What is said of a profile that cannot be used."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError) as caught:
        loader.load(path)
    assert str(path) in caught.value.what
    return str(caught.value)


def test_the_smallest_profile_is_complete(path: Path) -> None:
    path.write_text(HEAD + "[gate.boot]\n")
    profile = loader.load(path)
    assert profile.required == ("boot",)
    assert profile.firmwares == ("uefi", "bios")
    assert profile.gates["boot"].state is State.LIVE
    assert profile.gates["boot"].promise == GATES["boot"].title
    assert profile.policy("boot") == BootPolicy()
    assert profile.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert profile.source == str(path)


def test_everything_that_is_said_is_kept(path: Path) -> None:
    path.write_text(
        HEAD
        + """
title = "P"
os_release = { ID = "p", VERSION_ID = "1" }
[machine]
firmware = ["uefi-secureboot"]
memory_mib = 4096
[boot]
ready_target = "graphical.target"
[[boot.keys]]
text = "Install"
keys = ["down", "ret"]
why = "the second entry is the live system"
[login]
user = "live"
[gate.boot]
promise = "boots"
watch_s = 5
[[gate.boot.accept_units]]
unit = "a.service"
reason = "no such hardware"
[gate.kconfig]
required = false
state = "installed"
parameters = ["quiet"]
[gate.mesh-offline]
state = "installed"
[gate.house-rule]
"""
    )
    profile = loader.load(path)
    assert profile.machine.firmware == (Firmware.UEFI_SECUREBOOT,)
    assert profile.boot.keys is not None
    assert profile.boot.keys[0].keys == ("down", "ret")
    assert profile.login is not None
    assert profile.gates["boot"].promise == "boots"
    assert profile.policy("boot").accept_units[0].documented
    assert profile.required == ("boot", "mesh-offline", "house-rule")
    assert (profile.gates["kconfig"].state, profile.policy("kconfig")) == (
        State.INSTALLED,
        KconfigPolicy(parameters=("quiet",)),
    )
    assert (profile.gates["mesh-offline"].state, profile.policy("mesh-offline")) == (State.INSTALLED, None)


UNKNOWN = [
    ("titel = 'x'\n[gate.boot]\n", "unknown key titel", "title"),
    ("[machine]\nmemory_mb = 4096\n[gate.boot]\n", "unknown key machine.memory_mb", "memory_mib"),
    ("[boot]\nready_targt = 'x'\n[gate.boot]\n", "unknown key boot.ready_targt", "ready_target"),
    ("[[boot.keys]]\nkey = ['ret']\nwhy = 'x'\n[gate.boot]\n", "unknown key boot.keys.0.key", "keys"),
    ("[login]\nuser = 'x'\npasword = 'y'\n[gate.boot]\n", "unknown key login.pasword", "password"),
    ("[gate.boot]\ndeadline = 5\n", "unknown key gate.boot.deadline", "deadline_s"),
    ("[gate.boot]\nrequird = true\n", "unknown key gate.boot.requird", "required"),
    ("[gate.boot]\nstat = 'live'\n", "unknown key gate.boot.stat", "state"),
    (
        "[[gate.boot.accept_units]]\nunti = 'a'\nreason = 'x'\n",
        "unknown key gate.boot.accept_units.0.unti",
        "unit",
    ),
    ("[gate.kconfig]\nparameter = []\n", "unknown key gate.kconfig.parameter", "parameters"),
    (
        "[[gate.kconfig.accept_kconfig]]\nname = 'a'\noptions = []\nreasons = 'x'\n",
        "unknown key gate.kconfig.accept_kconfig.0.reasons",
        "reason",
    ),
    ("[gate.mesh-offline]\nrequird = true\n", "[gate.mesh-offline] has requird", "required"),
    ("[gate.kconfg]\nparameters = []\n", "no gate 'kconfg'", "kconfig"),
    ("[gat.boot]\n", "unknown key gat", "gate"),
]


@pytest.mark.parametrize(("text", "said", "nearest"), UNKNOWN, ids=[entry[1] for entry in UNKNOWN])
def test_an_unknown_key_is_named_with_the_nearest_known_one(path: Path, text: str, said: str, nearest: str) -> None:
    message = refused(path, HEAD + text)
    assert said in message
    assert f"(did you mean {nearest!r}?)" in message


def test_a_key_that_resembles_nothing_gets_no_guess(path: Path) -> None:
    message = refused(path, HEAD + "qqqqqq = 1\n[gate.boot]\n")
    assert "unknown key qqqqqq" in message
    assert "did you mean" not in message


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    message = refused(path, HEAD + "titel = 'x'\n[machine]\ncpus = 0\nmemory_mib = 'x'\n[gate.boot]\n")
    assert "titel" in message
    assert "machine.cpus" in message
    assert "machine.memory_mib" in message


LINES = [
    ("titel = 'x'\n[gate.boot]\n", "line 3: unknown key titel (did you mean 'title'?)"),
    ("[machine]\ncpus = 0\nmemory_mib = 'x'\n[gate.boot]\n", "line 4: machine.cpus: Input should be"),
    ("[machine]\ncpus = 0\nmemory_mib = 'x'\n[gate.boot]\n", "; line 5: machine.memory_mib: Input should be"),
    ("[gate.boot]\n[[gate.boot.accept_units]]\nreason = ''\n", "line 4: gate.boot.accept_units.0.unit: Field"),
    ("[gate.boot]\n[gate.kconfg]\nparameters = []\n", "line 4: [gate.kconfg] has parameters"),
    ("[gate.mesh-offline]\n\nrequird = true\n", "line 5: [gate.mesh-offline] has requird"),
    ("[gate.boot]\n[gate.Boot]\n", "line 4: 'Boot' is not a gate's name"),
    ("[gate.boot]\nrequired = true\nstate = 'installed'\n", "line 5: [gate.boot] state is installed"),
    ("[gates.boot]\n", "line 3: [gates.boot] is written [gate.boot]"),
    ("gates = 'x'\n[gate.boot]\n", "line 3: gates is a list of paths"),
    ("gates = ['none']\n[gate.boot]\n", "line 3: gates: 'none' does not exist"),
    ("[gate.boot]\nrequired = false\n", "line 3: no gate is required"),
    ("[gate.mesh-offline]\nstate = 'instaled'\n", "'tampered' (did you mean 'installed'?)"),
    ("[machine]\nfirmware = ['ueff']\n[gate.boot]\n", "(did you mean 'uefi'?)"),
    ("[gate.boot]\n\n[gate.boot]\n", "line 5: it is not TOML: gate.boot is there already, in line 3"),
    (
        "[gate.boot]\nwatch_s = 1\nwatch_s = 2\n",
        "line 5: it is not TOML: gate.boot.watch_s is there already, in line 4",
    ),
    ("[gate.boot]\nstate = live\n", "line 4: it is not TOML: Invalid value (column 9)"),
    ("[gate.boot]\nx = [\n", "line 4: it is not TOML: Invalid value"),
    ("[gate.boot]\nx = '\xe9'\n".encode("latin-1"), "line 4: it is not TOML: byte 0xe9 is not UTF-8"),
    ("\ufeff[gate.boot]\n", None),
    ("x = " + "[" * 20_000, "nested too deeply"),
    ("x = " + "9" * 5000, "not TOML that can be read"),
    ("[gate.boot]\ndeadline_s = inf\n", "line 4: gate.boot.deadline_s: Input should be a finite number"),
    ("[boot]\nready_text = '" + "(" * 3000 + "'\n[gate.boot]\n", "line 4: boot.ready_text: not a regular expression"),
    ("[boot]\nready_text = 'x{99999999999}'\n[gate.boot]\n", "line 4: boot.ready_text: not a regular expression"),
]


@pytest.mark.parametrize(("text", "said"), LINES)
def test_the_line_is_named(path: Path, text: str | bytes, said: str | None) -> None:
    head = HEAD.encode()
    message = refused(path, head + (text.encode() if isinstance(text, str) else text))
    assert said is None or said in message
    assert message.count("\n  -> ") == 1


def test_a_byte_order_mark_is_named(path: Path) -> None:
    assert "line 1: it begins with a byte order mark" in refused(path, b"\xef\xbb\xbf" + HEAD.encode())


@pytest.mark.parametrize("name", ["''", "' '", '"a\\nLAUNCH: READY"', '"\\u202ea"', "'" + "x" * 81 + "'"])
def test_a_name_is_one_line_of_printable_text(path: Path, name: str) -> None:
    assert "line 2: name: give one line" in refused(path, f"schema = 1\nname = {name}\n[gate.boot]\n")


def test_entries_that_contradict_each_other_are_named_by_their_lines(path: Path) -> None:
    unit = '[[gate.settings.unit]]\nstate = "live"\nreason = "r"\nnames = ["a.service"]\n'
    message = refused(path, f"{HEAD}{unit}absent = true\n\n{unit}enabled = true\n")
    assert "lines 3 and 9: gate.settings: live: " in message
    assert "is demanded absent, and a.service" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "schema: Field required"),
        ("schema = 1\n[gate.boot]\n", "name: Field required"),
        ("schema = 2\nname = 'p'\n[gate.boot]\n", "this version knows 1"),
        (HEAD, "no gate is required"),
        (HEAD + "[gate]\n", "no gate is required"),
        (HEAD + "[gate.boot]\nrequired = false\n[gate.mesh-offline]\nrequired = false\n", "no gate is required"),
        (HEAD + "gate = 3\n", "gate: Input should be"),
        (HEAD + "[gate]\nboot = 3\n", "gate.boot: Input should be"),
        (HEAD + "[gate.Boot]\n", "not a gate's name"),
        (HEAD + '[gate."../x"]\n', "not a gate's name"),
        (HEAD + '[gate."boot\\n"]\n', "not a gate's name"),
        (HEAD + "[gate.boot]\nstate = 'installed'\n", "this gate judges live"),
        (HEAD + "[gate.kconfig]\nstate = 'image'\n", "this gate judges live or installed"),
        (HEAD + "[gate.mesh-offline]\nstate = 'running'\n", "gate.mesh-offline.state: Input should be"),
        (HEAD + "[gate.boot]\ndeadline_s = 0\n", "gate.boot.deadline_s: Input should be greater than 0"),
        (HEAD + "[gate.boot]\nrequired = 'perhaps'\n", "gate.boot.required"),
        (HEAD + "[machine]\nfirmware = []\n[gate.boot]\n", "machine.firmware"),
        (HEAD + "[machine]\nfirmware = ['coreboot']\n[gate.boot]\n", "machine.firmware.0: Input should be"),
        (HEAD + "[boot]\nready_text = '('\n[gate.boot]\n", "not a regular expression"),
        (HEAD + "[login]\npassword = 'x'\n[gate.boot]\n", "login.user: Field required"),
        (HEAD + "[gate.boot", "is not TOML"),
        (HEAD + "[gate.boot]\n[gate.boot]\n", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"\0", "is not TOML"),
        (HEAD + "[gate.boot]\n#" + "x" * source.MAX_SIZE, "larger than"),
    ],
)
def test_a_wrong_profile_is_refused_by_its_key(path: Path, text: str | bytes, said: str) -> None:
    assert said in refused(path, text)


def test_a_profile_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        loader.load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="is a directory"):
        loader.load(tmp_path)


def test_a_profile_is_found_by_name_or_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("")
    assert loader.find("demo") == loader.built_in()["demo"]
    assert loader.find(str(path)) == path
    monkeypatch.chdir(path.parent)
    assert loader.find("p.toml") == Path("p.toml")
    assert loader.find("./p.toml") == Path("./p.toml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demmo", "did you mean 'demo'?"),
        ("qqqq", "use one of demo"),
        ("none.toml", "no distro profile at none.toml"),
        ("../demo", "no distro profile at ../demo"),
        ("profiles/", "no distro profile at"),
    ],
)
def test_a_profile_that_is_not_there_is_missed_with_the_names_that_are(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"demo") as caught:
        loader.find(name)
    assert said in str(caught.value)


BUILT_IN = sorted(loader.built_in())
INSTALLED = ("demo-install", "demo-installed", "demo-secureboot", "demo-tpm", "demo-tpm-pin", "demo-tpm-uki")


def acceptances(model: object) -> list[Acceptance]:
    """All acceptances inside a policy."""
    if isinstance(model, Acceptance):
        return [model]
    if isinstance(model, Model):
        return [found for name in type(model).model_fields for found in acceptances(getattr(model, name))]
    if isinstance(model, tuple):
        return [found for entry in model for found in acceptances(entry)]
    return []


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_profile_is_in_order(name: str) -> None:
    profile = loader.load(loader.find(name))
    assert profile.name == name
    assert profile.title
    for gate in set(profile.gates) - set(KNOWN_GATES):
        assert difflib.get_close_matches(gate, GATES, cutoff=0.8) == [], "a gate of this version, misspelt"
    assert all(section.promise for section in profile.gates.values())
    found = [entry for section in profile.gates.values() for entry in acceptances(section.policy)]
    assert [entry for entry in found if not entry.documented] == []


def test_other_profiles_of_the_demo_are_chosen_by_name_alone() -> None:
    """Its disks are made from the demo's ISO, which has a profile of its own."""
    for name in INSTALLED:
        assert loader.load(loader.find(name)).os_release == {}


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in INSTALLED])
def test_a_built_in_profile_is_detected_by_its_os_release_alone(name: str) -> None:
    profile = loader.load(loader.find(name))
    assert profile.os_release
    assert loader.detect({**profile.os_release, "PRETTY_NAME": "x"}) == loader.find(name)


def test_the_demo_explains_its_acceptances() -> None:
    profile = loader.load(loader.find("demo"))
    assert len(acceptances(profile.policy("kconfig"))) > 1


@pytest.mark.parametrize("release", [{}, {"ID": "osgates-test"}, {"ID": "DEMO"}, {"NAME": "osgates-demo"}])
def test_an_image_that_no_profile_fits_is_told_how_to_name_one(release: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="no built-in profile fits") as caught:
        loader.detect(release)
    assert "--iso-distro" in str(caught.value)


def test_two_profiles_that_fit_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    for name, release in (("a", '{ ID = "x" }'), ("b", '{ ID = "x", V = "1" }'), ("c", "{}")):
        made[name] = tmp_path / f"{name}.toml"
        made[name].write_text(f'schema = 1\nname = "{name}"\nos_release = {release}\n[gate.boot]\n')
    monkeypatch.setattr(loader, "built_in", lambda: made)
    assert loader.detect({"ID": "x"}) == made["a"]
    with pytest.raises(UsageError, match="several built-in profiles fit an image with ID='x'"):
        loader.detect({"ID": "x", "V": "1"})
    with pytest.raises(UsageError, match="no built-in profile fits"):
        loader.detect({"ID": "y"})
