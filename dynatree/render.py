"""Write a chart as SVG, PNG and a page that works offline; equal charts give equal bytes. Knows no figure."""

import html
import re
from pathlib import Path

import altair as alt
import vl_convert

from dynatree.files import replacing, write_text


def render(chart: alt.TopLevelMixin, folder: str | Path, name: str, caption: str) -> None:
    """Write `<name>.svg`, `<name>.png` (scale 2) and `<name>.html`, each atomically, into `folder`.

    The caption becomes the description of the SVG and a paragraph of the page.
    """
    specification = chart.to_dict() | {"description": caption}
    svg = _renumbered(vl_convert.vegalite_to_svg(specification))
    page = _page(vl_convert.vegalite_to_html(specification | {"description": ""}, bundle=True), caption)
    png = vl_convert.vegalite_to_png(specification, scale=2)
    write_text(Path(folder) / f"{name}.svg", svg)
    write_text(Path(folder) / f"{name}.html", page)
    with replacing(Path(folder) / f"{name}.png") as temporary:
        temporary.write_bytes(png)


def _renumbered(svg: str) -> str:
    """Vega numbers clip paths and gradients by a counter that never starts again; number them by appearance."""
    numbers: dict[str, str] = {}
    return re.sub(
        r'(?<=id=")(?:clip|gradient_)\d+(?=")|(?<=url\(#)(?:clip|gradient_)\d+(?=\))',
        lambda found: numbers.setdefault(found[0], f"part{len(numbers)}"),
        svg,
    )


def _page(page: str, caption: str) -> str:
    """The page with the caption, and with its data kept from closing the script that holds them."""
    before, start, after = page.rpartition("const spec = ")
    specification, newline, rest = after.partition("\n")
    paragraph = f'<p style="max-width: 60em; font-family: sans-serif">{html.escape(caption)}</p>\n  </body>'
    return before + start + specification.replace("<", "\\u003c") + newline + rest.replace("</body>", paragraph)
