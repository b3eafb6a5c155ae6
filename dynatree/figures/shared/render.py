"""Write a chart as SVG, PNG and a page that works offline; equal charts give equal bytes. Knows no figure."""

import html
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from dynatree.figures.shared import interactive
from dynatree.files import replacing, write_text

SUFFIXES = (".svg", ".html", ".png")
_SPECIFICATION = "const spec = "  # behind it a page of vl-convert holds what it draws, on one line


def render(chart: alt.TopLevelMixin, folder: str | Path, name: str, caption: str) -> None:
    """Write `<name>.svg`, `<name>.png` (scale 2) and `<name>.html`, each atomically, into `folder`.

    The caption becomes the description of the SVG and a paragraph of the page.
    """
    for suffix in SUFFIXES:
        write(chart, Path(folder) / f"{name}{suffix}", caption)


def write(chart: alt.TopLevelMixin, path: Path, caption: str) -> None:
    """Write one file, atomically, as its suffix says: one of SUFFIXES."""
    specification = chart.to_dict() | {"description": caption}
    if path.suffix == ".svg":
        write_text(path, svg(specification))
    elif path.suffix == ".html":
        drawing = interactive.interactive(specification | {"description": ""})
        write_text(path, _page(vl_convert.vegalite_to_html(drawing, bundle=True), caption))
    else:
        png = vl_convert.vegalite_to_png(specification, scale=2)
        with replacing(path) as temporary:
            temporary.write_bytes(png)


def svg(specification: dict[str, Any]) -> str:
    """The picture of a Vega-Lite specification, the same each time.

    Vega numbers clip paths and gradients by a counter that never starts again; they are numbered by appearance.
    """
    numbers: dict[str, str] = {}
    return re.sub(
        r'(?<=id=")(?:clip|gradient_)\d+(?=")|(?<=url\(#)(?:clip|gradient_)\d+(?=\))',
        lambda found: numbers.setdefault(found[0], f"part{len(numbers)}"),
        vl_convert.vegalite_to_svg(specification),
    )


def drawing_of(page: str) -> dict[str, Any]:
    """The Vega-Lite specification that a page of `write` draws, interactive."""
    drawing: dict[str, Any] = json.JSONDecoder().raw_decode(page.rpartition(_SPECIFICATION)[2])[0]
    return drawing


def _page(page: str, caption: str) -> str:
    """The page with the caption, and with its data kept from closing the script that holds them."""
    before, start, after = page.rpartition(_SPECIFICATION)
    specification, newline, rest = after.partition("\n")
    paragraph = f'<p style="max-width: 60em; font-family: sans-serif">{html.escape(caption)}</p>\n  </body>'
    return before + start + specification.replace("<", "\\u003c") + newline + rest.replace("</body>", paragraph)
