"""Write a chart as SVG, PNG and a page that works offline; equal charts give equal bytes. Knows no figure."""

import html
import re
from pathlib import Path

import altair as alt
import vl_convert

from dynatree.files import replacing, write_text

SUFFIXES = (".svg", ".html", ".png")


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
        write_text(path, _renumbered(vl_convert.vegalite_to_svg(specification)))
    elif path.suffix == ".html":
        page = vl_convert.vegalite_to_html(specification | {"description": ""}, bundle=True)
        write_text(path, _page(page, caption))
    else:
        png = vl_convert.vegalite_to_png(specification, scale=2)
        with replacing(path) as temporary:
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
