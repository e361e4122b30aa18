"""`osgates diff`: exit status, text, JSON and HTML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gate_samples import HOSTILE, difference, image_file

from pytest_osgates.checks.causes import attribute, group
from pytest_osgates.checks.divergence import ImageComparison
from pytest_osgates.cli import main
from pytest_osgates.report.divergence import html, text_lines
from pytest_osgates.vm.process import run

GOLDEN = Path(__file__).parents[2] / "golden" / "diff" / "report.txt"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ISOs with one file that differs."""
    images = []
    for number in (0, 1):
        directory = tmp_path_factory.mktemp("pair")
        (directory / "tree" / "etc").mkdir(parents=True)
        (directory / "tree" / "etc" / "build").write_text(f"built on 2026-01-0{number + 1}\n")
        path = directory / "image.iso"
        date = "2023111422132000"
        dates = (f"--modification-date={date}", "--set_all_file_dates", date)
        run(
            ["xorriso", "-as", "mkisofs", "-quiet", "-r", *dates, "-o", str(path), str(directory / "tree")],
            timeout=60,
        )
        images.append(path)
    return images[0], images[1]


def test_identical_images(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy.iso"
    copy.write_bytes(pair[0].read_bytes())
    assert main(["diff", str(pair[0]), str(copy)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "identical"
    assert main(["diff", str(pair[0]), str(pair[0])]) == 0
    assert "one and the same file" in capsys.readouterr().out
    out = tmp_path / "out.json"
    assert main(["diff", str(pair[0]), str(copy), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["equal"] is True


def test_different_images(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report, page = tmp_path / "out.json", tmp_path / "out.html"
    assert main(["diff", *map(str, pair), "--json", str(report), "--html", str(page)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0 bytes unexplained"
    assert any("a date or time in a file: 1 node, content only" in line for line in lines)
    assert any("/etc/build: content" in line for line in lines)
    seen = ImageComparison.model_validate_json(report.read_text())
    assert [entry.cause for entry in seen.differences] == ["date-in-text"]
    assert seen.differences[0].spots[0].b == "built on 2026-01-02"
    assert "/etc/build" in page.read_text()


def test_json_to_standard_output(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *map(str, pair), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["unexplained"] == 0


@pytest.mark.parametrize("wrong", ["missing.iso", "directory", "empty"])
def test_what_cannot_be_compared(
    pair: tuple[Path, Path], tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / wrong
    if wrong == "directory":
        path.mkdir()
    elif wrong == "empty":
        path.touch()
    assert main(["diff", str(pair[0]), str(path)]) == 2
    assert wrong in capsys.readouterr().err
    assert main(["diff", *map(str, pair), "--json", str(tmp_path / "no" / "x.json")]) == 2


def hostile() -> ImageComparison:
    found = attribute(
        [
            difference("/etc/machine-id", locus="line 1", a=HOSTILE, b="<script>alert(1)</script>"),
            *(difference(f"/usr/f{number}", "mtime", delta=964) for number in range(9)),
            difference(f"/{HOSTILE}", "mode", a="0644", b="0600"),
            difference("/usr/bin/ping", "xattr security.capability", a="01", b="none"),
            difference("image", "size", layer="image", a="1", b="2", follows=True),
        ]
    )
    return ImageComparison(
        a=image_file(), b=image_file("b"), equal=False, differences=found, groups=group(found), nodes=12, seconds=1.5,
        notes=(f"note {HOSTILE}",),
    )  # fmt: skip


def test_the_report_is_as_it_was() -> None:
    text = "\n".join(text_lines(hostile())) + "\n"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_html_escapes_what_images_say() -> None:
    page = html(hostile())
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "COST" not in page
    assert "drops" in page or "dropping" in page
