"""`make gallery`: every drawn figure with its caption under its section, on a page that loads nothing."""

import base64
import re
import runpy
from pathlib import Path

import pytest

from dynatree import files, plugins
from dynatree.figures.shared.gallery import Picture, page

SCRIPT = Path(__file__).resolve().parents[2] / "workflow/scripts/gallery.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["gallery", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_every_drawn_figure_stands_in_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a figure that the page lacks, or that stands with another's caption."""
    for name in plugins.names("figures"):
        files.write_text(tmp_path / f"{name}.svg", f"<svg>{name}</svg>")
        files.write_text(tmp_path / f"{name}.caption.txt", f"What {name} says.\n")
    run(monkeypatch, "--figures", str(tmp_path), "--out", str(tmp_path / "out.html"))
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    sections = re.split(r"<h2 id=", text)[1:]
    for name in plugins.names("figures"):
        (section,) = [part for part in sections if f'<figure id="{name}">' in part]
        assert f">{plugins.load('figures', name).SECTION}</h2>" in section
        assert base64.b64encode(f"<svg>{name}</svg>".encode()).decode() in section
        assert f"<figcaption>What {name} says.</figcaption>" in section


def test_the_page_loads_nothing_and_captions_cannot_break_it() -> None:
    """Guards against addresses that need a network, and a caption that closes its tag."""
    text = page("All", {"Speed": [Picture("a", "<svg/>", 'a "<b>" & c')]})
    assert "http" not in text and "<script" not in text and "<b>" not in text
    assert text.count("&quot;&lt;b&gt;&quot; &amp; c") == 2


def test_a_folder_without_figures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an empty page where nothing was drawn yet."""
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--figures", str(tmp_path), "--out", str(tmp_path / "out.html"))
    assert left.value.code == 2 and "make all" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
