"""`make gallery`: every drawn figure with its caption under its section, on a page that loads nothing; what a reader
can ask of it.
"""

import base64
import copy
import json
import re
import runpy
from pathlib import Path

import pytest
import tables as synthetic
import vl_convert

from dynatree import files, plugins
from dynatree.figures.shared import interactive, render, theme
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


def test_the_library_is_told_what_it_draws() -> None:
    """Guards against figures that stay blank: vega-embed takes a `concat` without a schema for a drawing of vega."""
    drawing = {"$schema": "of vega-lite", "concat": []}
    found = page("t", {"S": [Picture("one", "<svg/>", "c", drawing)]})
    assert "of vega-lite" not in found
    assert re.search(r"vegaEmbed\(.*, drawing, \{ mode: \"vega-lite\"", found)


def test_a_drawing_of_a_page_is_in_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a still picture where there is more to see, and against libraries once for each figure."""
    for name in ("datasets", "length_scaling"):
        chart = plugins.load("figures", name).draw(synthetic.make(word="</script>"))
        render.render(chart, tmp_path, name, f"What {name} says.")
        files.write_text(tmp_path / f"{name}.caption.txt", f"What {name} says.\n")
    run(monkeypatch, "--figures", str(tmp_path), "--out", str(tmp_path / "out.html"))
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    given = json.JSONDecoder().raw_decode(text.partition("drawings = ")[2])[0]
    assert set(given) == {"datasets", "length_scaling"} and all("$schema" not in drawing for drawing in given.values())
    assert text.count("</script>") == 2 and "<img" not in text.partition("<script>")[0]
    methods = json.JSONDecoder().raw_decode(text.partition("methods = ")[2])[0]
    assert {"autoregressive", "dynatree"} <= {method["name"] for method in methods}


@pytest.mark.parametrize("name", ["datasets", "prompt_length", "benchmark", "ablation", "tree_shape"])
def test_marks_say_their_method_settings_interval_and_n(name: str) -> None:
    """Guards against marks that say nothing, and against a page that looks unlike the picture."""
    plain = plugins.load("figures", name).draw(synthetic.make()).to_dict()
    before = copy.deepcopy(plain)
    drawing = interactive.interactive(plain)
    assert plain == before
    units = [unit for unit, *_ in interactive._units(drawing, None, {}) if "tooltip" in unit.get("encoding", {})]
    titles = {said["title"] for unit in units for said in unit["encoding"]["tooltip"]}
    assert {"method", "settings", "value", "95 % interval", "n"} <= titles
    every = [row for found in drawing["datasets"].values() for row in found]
    rows = [row for row in every if row.get("told_interval") not in (None, "", "none")]
    assert rows
    for row in rows:
        low, high = (float(end.replace(",", "")) for end in row["told_interval"].split(" to "))
        assert low == pytest.approx(row["low"], rel=0.01) and high == pytest.approx(row["high"], rel=0.01)
    assert set(interactive.methods(drawing)) >= {"dynatree"}
    assert [len(found) for found in drawing["datasets"].values()] == [len(f) for f in plain["datasets"].values()]


TITLES = {
    "calibration": {"n", "stated probability", "observed hits"},
    "rank_hits": {"value", "n", "rank among siblings", "depth"},
    "memory": {"of", "peak, MiB, from", "peak, MiB, to"},
    "phase_breakdown": {"of", "part", "ms per token, from", "ms per token, to"},
}


@pytest.mark.parametrize("name", TITLES)
def test_marks_of_no_method_say_what_they_are_drawn_by(name: str) -> None:
    """Guards against figures of the page in which nothing can be asked."""
    drawing = interactive.interactive(plugins.load("figures", name).draw(synthetic.make()).to_dict())
    encoded = [unit["encoding"] for unit, *_ in interactive._units(drawing, None, {})]
    told = [encoding["tooltip"] for encoding in encoded if "tooltip" in encoding]
    titles = {line["title"] for lines in told for line in lines}
    assert titles >= TITLES[name], titles
    assert all(line["field"] for lines in told for line in lines)
    assert "<svg" in vl_convert.vegalite_to_svg(drawing)


def test_one_method_is_shown_alone() -> None:
    """Guards against a choice that fades nothing, or also what is chosen."""
    drawing = interactive.interactive(plugins.load("figures", "datasets").draw(synthetic.make()).to_dict())
    for param in drawing["params"]:
        if param["name"] == interactive.ONLY:
            param["value"] = "dynatree"
    svg = vl_convert.vegalite_to_svg(drawing)
    bars = re.findall(r"<path [^>]*>", svg)
    seen = {
        tone: [bar for bar in bars if f'fill="{tone}"' in bar] for tone in map(theme.colour, ("dynatree", "linear"))
    }
    assert all(f'opacity="{interactive._FAINT}"' in bar for bar in seen[theme.colour("linear")])
    assert not any(f'opacity="{interactive._FAINT}"' in bar for bar in seen[theme.colour("dynatree")])
    assert all(seen.values())


def test_a_folder_without_figures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an empty page where nothing was drawn yet."""
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--figures", str(tmp_path), "--out", str(tmp_path / "out.html"))
    assert left.value.code == 2 and "make all" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
