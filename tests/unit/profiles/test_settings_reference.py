"""The reference of `[gate.settings]`: its examples are a profile, and there is one for each key."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_osgates.checks.settings.policy import SettingsPolicy
from pytest_osgates.profiles import loader

DOCS = Path(__file__).parents[3] / "docs" / "profiles.md"


def test_examples_load_and_leave_no_key_out(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8").partition("### `[gate.settings]`")[2]
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "p.toml"
    path.write_text('schema = 1\nname = "p"\n' + "\n".join(blocks))
    policy = loader.load(path).policy("settings")
    assert isinstance(policy, SettingsPolicy)
    for kind in SettingsPolicy.model_fields:
        entries = getattr(policy, kind)
        assert entries, kind
        used = set().union(*(entry.model_fields_set for entry in entries))
        assert used == set(type(entries[0]).model_fields), kind


def test_the_reference_names_every_key() -> None:
    text = DOCS.read_text(encoding="utf-8").partition("### `[gate.settings]`")[2]
    for kind, field in SettingsPolicy.model_fields.items():
        assert f"[[gate.settings.{kind}]]`" in text
        (entry,) = (model for model in field.annotation.__args__ if isinstance(model, type))  # type: ignore[union-attr]
        for key in entry.model_fields:
            assert f"`{key}`" in text or key in {"state", "reason"}, key
