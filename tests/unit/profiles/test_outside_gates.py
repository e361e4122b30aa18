"""Gates from outside: what is loaded, what is refused, and in which words."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from pytest_osgates.model import State
from pytest_osgates.profiles import loader
from pytest_osgates.profiles.origin import Origin
from pytest_osgates.profiles.schema import GateSection
from pytest_osgates.vm.errors import UsageError

HEAD = 'schema = 1\nname = "p"\n'
GATE = """
from pytest_osgates.model import Control, Finding, Gate, Observation, Policy, State

class Seen(Observation):
    pass

class Wanted(Policy):
    colour: str = "red"

def judge(seen, policy):
    return []

def make(name="motd", **changes):
    fields = dict(title="a banner", states=(State.IMAGE, State.LIVE), observation=Seen, policy=Wanted, judge=judge)
    return Gate(**{"name": name, "controls": (), **fields, **changes})
"""
PLAIN = GATE + "GATE = make()\n"


class Place:
    """A directory with a profile, and gates in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.profile = root / "p.toml"

    def gate(self, text: str = PLAIN, path: str = "gates/test_motd.py") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def write(self, gates: str = '["gates"]', sections: str = "[gate.motd]\n") -> None:
        self.profile.write_text(f"{HEAD}gates = {gates}\n{sections}")

    def load(self, gates: str = '["gates"]', sections: str = "[gate.motd]\n") -> dict[str, GateSection]:
        self.write(gates, sections)
        return dict(loader.load(self.profile).gates)

    def origin(self, gates: str = '["gates"]') -> Origin:
        outside = self.load(gates)["motd"].outside
        assert outside is not None
        return outside.origin

    def refused(self, gates: str = '["gates"]', sections: str = "[gate.motd]\n") -> str:
        """What is said of it; there is always a remedy, and the profile's name."""
        self.write(gates, sections)
        with pytest.raises(UsageError) as caught:
            loader.load(self.profile)
        assert caught.value.remedy
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "distro").mkdir()
    return Place(tmp_path / "distro")


# -- what is loaded -----------------------------------------------------------------------------------------------


def test_a_gate_from_outside_has_a_section_like_any_other(place: Place) -> None:
    file = place.gate()
    section = place.load(sections='[gate.motd]\nstate = "live"\nrequired = false\ncolour = "blue"\n[gate.boot]\n')[
        "motd"
    ]
    assert (section.state, section.required, section.promise) == (State.LIVE, False, "a banner")
    assert section.policy is not None
    assert section.policy.model_dump() == {"colour": "blue"}
    assert section.gate is not None
    assert section.outside is not None
    assert section.outside.gate is section.gate
    assert section.outside.file == file
    assert section.outside.module.GATE is section.gate
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert section.outside.origin == Origin(path="gates/test_motd.py", sha256=sha256, beside={})
    assert place.load()["motd"].state is State.IMAGE


@pytest.mark.parametrize(
    ("gates", "path"),
    [
        ('["gates/test_motd.py"]', "gates/test_motd.py"),
        ('["gates", "gates/test_motd.py", "./gates/../gates/"]', "gates/test_motd.py"),
        ('["../distro/gates"]', "gates/test_motd.py"),
        ('["link"]', "link/test_motd.py"),
        ('["gates", "link", "files"]', "gates/test_motd.py"),
        ('["files"]', "files/test_other_name.py"),
    ],
)
def test_each_file_is_one_gate_whatever_leads_to_it(place: Place, gates: str, path: str) -> None:
    place.gate(PLAIN + f"open({str(place.root / 'runs')!r}, 'a').write('x')\n")
    (place.root / "link").symlink_to("gates")
    (place.root / "files").mkdir()
    (place.root / "files" / "test_other_name.py").symlink_to("../gates/test_motd.py")
    assert place.origin(gates).path == path
    assert (place.root / "runs").read_text() == "x"


def test_a_directory_outside_of_the_profiles_and_an_absolute_path_are_the_users_own_choice(place: Place) -> None:
    place.gate(path="../shared/test_motd.py")
    assert place.origin('["../shared"]').path == "../shared/test_motd.py"
    assert place.origin(f'["{place.root.parent}/shared"]').path == "../shared/test_motd.py"


def test_helpers_of_one_name_in_two_directories_do_not_meet(place: Place) -> None:
    for folder in ("one", "two"):
        place.gate(f"NAME = {folder!r}\n", f"{folder}/helper.py")
        place.gate(f"from .helper import NAME\n{GATE}GATE = make(NAME, title=NAME)\n", f"{folder}/test_same.py")
        place.gate("raise SystemExit('never imported')\n", f"{folder}/conftest.py")
    found = place.load('["one", "two"]', "[gate.one]\n[gate.two]\n")
    assert [section.promise for section in found.values()] == ["one", "two"]
    for name, section in found.items():
        assert section.outside is not None
        digest = hashlib.sha256(f"NAME = {name!r}\n".encode()).hexdigest()
        assert section.outside.origin.beside["helper.py"] == digest
        assert set(section.outside.origin.beside) == {"conftest.py", "helper.py"}


def test_two_profiles_may_share_a_gate_and_demand_different_things(place: Place) -> None:
    place.gate()
    other = place.root / "other.toml"
    other.write_text(HEAD + 'gates = ["gates/test_motd.py"]\n[gate.motd]\ncolour = "green"\n')
    sections = [place.load()["motd"], loader.load(other).gates["motd"]]
    assert [section.policy.model_dump() for section in sections if section.policy] == [
        {"colour": "red"},
        {"colour": "green"},
    ]


def test_the_bytes_that_are_digested_are_the_bytes_that_are_run(place: Place) -> None:
    """Also when neither time nor size of the file tell that it is another one."""
    file = place.gate(GATE + "GATE = make(title='first')\n")
    os.utime(file, (1e9, 1e9))
    compiled = Path(sys.pycache_prefix or file.parent / "__pycache__")
    first = place.load()["motd"]
    file.write_text(GATE + "GATE = make(title='other')\n")
    os.utime(file, (1e9, 1e9))
    again = place.load()["motd"]
    assert (first.promise, again.promise) == ("first", "other")
    assert first.outside is not None
    assert again.outside is not None
    assert first.outside.origin.sha256 != again.outside.origin.sha256
    assert not list(compiled.glob("test_motd*"))


def test_evidence_of_others_brings_no_code_along(place: Place) -> None:
    place.gate("raise SystemExit('was run')\n")
    place.write(sections="[gate.motd]\nanything = 1\n[gate.boot]\n")
    section = loader.load(place.profile, code=False).gates["motd"]
    assert (section.gate, section.policy) == (None, None)
    assert "no gate 'motd'" in section.absent


def test_no_built_in_profile_names_code() -> None:
    for path in loader.built_in().values():
        assert "gates" not in [line.partition("=")[0].strip() for line in path.read_text().splitlines()]
        assert [section.outside for section in loader.load(path).gates.values() if section.outside] == []


def test_rows_and_their_states_come_from_the_gate(place: Place) -> None:
    place.gate(
        GATE + "GATE = make(cases=lambda policy, firmwares: (policy.colour, *firmwares),"
        " state_of_case=lambda case: State.LIVE if case == 'red' else State.IMAGE)\n"
    )
    section = place.load()["motd"]
    assert section.rows == ("red", "uefi", "bios")
    assert [section.state_of(row) for row in section.rows] == [State.LIVE, State.IMAGE, State.IMAGE]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ('["none"]', "'none' does not exist"),
        ('["gates", "none/test_x.py"]', "does not exist"),
        ('["empty"]', "'empty' has no test_*.py"),
        ('["p.toml"]', "'p.toml' is neither a directory nor a Python file"),
        ('[""]', "'' is no path"),
        ('["a\\u0000b"]', "is no path"),
        ('["broken"]', "cannot be read"),
        ('["folder"]', "test_x.py is not a regular file"),
        ('["pipe"]', "test_x.py is not a regular file"),
        ('["loop"]', "'loop'"),
        ('"gates"', 'write gates = ["gates"]'),
        ("[1]", "gates.0: Input should be a valid string"),
        ("3", "gates: Input should be"),
    ],
)
def test_a_path_that_leads_to_no_gate_is_refused(place: Place, gates: str, said: str) -> None:
    place.gate()
    for folder in ("empty", "broken", "folder/test_x.py", "pipe"):
        (place.root / folder).mkdir(parents=True)
    (place.root / "broken" / "test_x.py").symlink_to("nowhere.py")
    (place.root / "loop").symlink_to("loop")
    os.mkfifo(place.root / "pipe" / "test_x.py")
    message = place.refused(gates)
    assert said in message
    assert "p.toml" in message


BROKEN = {
    "raise RuntimeError('no luck')": "line 2: RuntimeError: no luck",
    "def (": "line 2: SyntaxError: ",
    "import no_such_module_anywhere": "line 2: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    "import sys; sys.exit(0)": "line 2: SystemExit: 0",
    "from pytest_osgates.checks.registry import GATES\nGATES['boot'] = GATES['kconfig']": "line 3: TypeError",
    "exit()": "line 2: SystemExit",
    "import pytest; pytest.skip('not here', allow_module_level=True)": "line 2: Skipped: not here",
    "import pytest; pytest.importorskip('no_such_module_anywhere')": "line 2: Skipped: ",
    "import pytest; pytest.fail('x')": "line 2: Failed: x",
    "import pytest; pytest.exit('x')": "line 2: Exit: x",
    "raise GeneratorExit": "line 2: GeneratorExit",
    "def f(): f()\nf()": "RecursionError",
    "\x00": "null bytes",
    "x = 1": "holds no GATE",
    "GATE = None": "GATE is NoneType, not a Gate",
    "gate = Gate = 3": "holds no GATE",
    "from pytest_osgates.model import Gate as GATE": "GATE is type, not a Gate",
}


@pytest.mark.parametrize("text", BROKEN, ids=list(BROKEN.values()))
def test_a_file_that_holds_no_gate_is_refused_with_the_line(place: Place, text: str) -> None:
    place.gate(f"# a gate\n{text}\n")
    for section in ("[gate.motd]\n", "[gate.motd]\nrequired = false\n[gate.boot]\n"):
        message = place.refused(sections=section)
        assert "p.toml: gates/test_motd.py" in message
        assert BROKEN[text] in message


def test_what_broke_once_is_tried_anew(place: Place) -> None:
    place.gate("GATE = 1\nraise ValueError\n")
    assert "line 2: ValueError" in place.refused()
    place.gate()
    assert place.load()["motd"].gate is not None


def test_ctrl_c_is_no_fault_of_the_gate(place: Place) -> None:
    place.gate("raise KeyboardInterrupt\n")
    place.write()
    with pytest.raises(KeyboardInterrupt):
        loader.load(place.profile)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("make('Motd')", "'Motd' is not a gate's name"),
        ("make('../motd')", "is not a gate's name"),
        ("make(3)", "3 is not a gate's name"),
        ("make('skip')", "cannot be called 'skip'"),
        ("make('xfail')", "cannot be called 'xfail'"),
        ("make('not')", "cannot be called 'not'"),
        ("make(title='')", "has no title"),
        ("make(states=())", "states are not a tuple"),
        ("make(states=('live',))", "states are not a tuple"),
        ("make(observation=Seen())", "observation is not a class made from Observation"),
        ("make(observation=Wanted)", "observation is not a class made from Observation"),
        ("make(policy=dict)", "policy is not a class made from Policy"),
        ("make(policy=type('P', (Policy,), {'__annotations__': {'state': str}}))", "the policy has state"),
        ("make(judge=None)", "judge is not a function"),
        ("make('boot')", "'boot', which is the name of a built-in one"),
        ("__import__('pytest_osgates.checks.boot', fromlist=['x']).GATE", "the name of a built-in one"),
        ("make('other')", "holds the gate 'other', for which there is no section"),
        ("make(cases=lambda policy, firmwares: {}['x'])", "[gate.motd] breaks its gate: KeyError: 'x'"),
        ("make(cases=lambda policy, firmwares: ('a', 'a'))", "names a row twice"),
        ("make(cases=lambda policy, firmwares: ('a', ''))", "'' is not a row's name"),
        ("make(cases=lambda policy, firmwares: ('../a',))", "'../a' is not a row's name"),
        ("make(cases=lambda policy, firmwares: (1,))", "1 is not a row's name"),
        ("make(cases=lambda policy, firmwares: ('a',), state_of_case=lambda case: 1 / 0)", "ZeroDivisionError"),
        ("make(cases=None)", "TypeError"),
    ],
)
def test_a_gate_that_cannot_be_judged_or_would_pass_for_another_is_refused(
    place: Place, made: str, said: str
) -> None:
    place.gate(GATE + f"GATE = {made}\n")
    message = place.refused()
    assert said in message
    assert "p.toml" in message


def test_two_gates_of_one_name_are_refused_and_both_are_named(place: Place) -> None:
    place.gate()
    place.gate(path="more/test_again.py")
    message = place.refused('["gates", "more"]')
    assert "more/test_again.py holds a gate 'motd', and so does gates/test_motd.py" in message


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("[gate.motd]\ncolor = 'x'\n", "unknown key gate.motd.color (did you mean 'colour'?)"),
        ("[gate.motd]\nrequird = true\n", "unknown key gate.motd.requird (did you mean 'required'?)"),
        ("[gate.motd]\ncolour = 3\n", "gate.motd.colour: Input should be a valid string"),
        ("[gate.motd]\nstate = 'installed'\n", "this gate judges image or live"),
        ("[gate.boot]\n", "no section"),
        ("[gate.mot]\ncolour = 'x'\n[gate.motd]\n", "this version has no gate 'mot'"),
    ],
)
def test_its_section_is_checked_like_any_other(place: Place, section: str, said: str) -> None:
    place.gate()
    assert said in place.refused(sections=section)


def test_a_validator_that_breaks_is_the_gates_fault(place: Place) -> None:
    place.gate(
        GATE + "from pydantic import field_validator\nclass Odd(Wanted):\n"
        "    @field_validator('colour')\n    @classmethod\n    def _odd(cls, value):\n        return {}[value]\n"
        "GATE = make(policy=Odd)\n"
    )
    message = place.refused(sections="[gate.motd]\ncolour = 'x'\n")
    assert "breaks its gate: KeyError: 'x'" in message
    assert "mend gates/test_motd.py" in message


@pytest.mark.parametrize("text", ["[gates.boot]\n", "[[gates.boot.accept_units]]\nunit = 'x'\n"])
def test_the_older_spelling_is_told_the_new_one(place: Place, text: str) -> None:
    place.profile.write_text(HEAD + text)
    with pytest.raises(UsageError, match=r"\[gates\.boot\] is written \[gate\.boot\]") as caught:
        loader.load(place.profile)
    assert "rename every [gates.NAME] to [gate.NAME]" in str(caught.value)


def test_a_gate_that_is_nowhere_is_told_where_gates_of_its_own_are_said(place: Place) -> None:
    place.profile.write_text(HEAD + "[gate.house-rule]\nkey = 1\n")
    with pytest.raises(UsageError, match=r'gates = \["DIRECTORY"\]'):
        loader.load(place.profile)


# -- installed gates ----------------------------------------------------------------------------------------------


class Site:
    """A directory on Python's path, with packages in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def install(self, name: str, entries: str, **files: str) -> None:
        info = self.root / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[osgates.gates]\n{entries}\n")
        for path, text in files.items():
            file = self.root / (path.replace("__", "/") + ".py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return Site(tmp_path / "site")


def test_an_installed_gate_is_loaded_where_the_profile_names_it(place: Place, site: Site) -> None:
    site.install("acme", "motd = acme_a.test_motd:IT", acme_a__test_motd=GATE + "IT = make()\n", acme_a__help="")
    site.install("other", "unused = acme_b:GATE", acme_b="raise SystemExit('imported')\n")
    section = place.load("[]")["motd"]
    assert section.outside is not None
    origin = section.outside.origin
    assert (origin.distribution, origin.entry_point) == ("acme 1.5", "acme_a.test_motd:IT")
    assert origin.path == "acme_a/test_motd.py"
    assert origin.where == "acme_a/test_motd.py of acme 1.5"
    assert origin.beside == {"help.py": hashlib.sha256(b"").hexdigest()}
    assert section.outside.file == site.root / "acme_a" / "test_motd.py"
    assert loader.load(place.profile, code=False).gates["motd"].gate is section.gate, (
        "it is installed: the user's own"
    )
    assert "acme_b" not in sys.modules


@pytest.mark.parametrize(
    ("entries", "text", "said"),
    [
        ("motd = acme_x", "", "is not MODULE:GATE"),
        ("motd = acme_x:GATE.title", PLAIN, "is not MODULE:GATE"),
        ("motd = acme_x:NONE", PLAIN, "holds no NONE"),
        ("motd = acme_x:make", PLAIN, "make is function, not a Gate"),
        ("motd = acme_x:GATE", "raise RuntimeError('x')\n", "cannot be loaded: RuntimeError: x"),
        ("motd = acme_x:GATE", "raise SystemExit\n", "cannot be loaded: SystemExit"),
        ("motd = acme_x.none:GATE", PLAIN, "ModuleNotFoundError"),
        ("motd = sys:GATE", "", "sys is not a Python file"),
        ("motd = acme_x:GATE", GATE + "GATE = make('other')\n", "leads to a gate 'other'"),
        ("boot = acme_x:GATE", PLAIN, "'boot', which is the name of a built-in one"),
    ],
)
def test_a_broken_installed_gate_is_refused_by_the_name_of_its_package(
    place: Place, site: Site, entries: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "acme_x", raising=False)
    site.install("acme", entries, acme_x=text)
    message = place.refused("[]")
    assert said in message
    assert "of acme 1.5" in message


def test_an_installed_gate_and_another_of_its_name_are_refused(place: Place, site: Site) -> None:
    place.gate()
    site.install("acme", "motd = acme_c:GATE", acme_c=PLAIN)
    message = place.refused()
    assert "of acme 1.5 holds a gate 'motd', and so does gates/test_motd.py" in message
    site.install("bcme", "motd = acme_c:GATE")
    message = place.refused("[]")
    assert "of acme 1.5" in message
    assert "of bcme 1.5 both hold a gate 'motd'" in message or "acme 1.5 both hold" in message


def test_choosing_a_profile_by_the_image_loads_no_code(site: Site) -> None:
    site.install("acme", "usbguard = acme_d:GATE", acme_d="raise SystemExit('imported')\n")
    wanted = loader.load(loader.find("demo"), code=False).os_release
    assert loader.detect(wanted) == loader.find("demo")
    assert "acme_d" not in sys.modules
