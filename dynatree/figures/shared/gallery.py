"""A page of drawn figures by section, whole in itself. Knows no figure."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --quiet: #666; --page: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --quiet: #aaa; --page: #181a1b; --line: #3a3d3f; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; }
nav a { margin-right: 1rem; } a { color: inherit; }
figure { margin: 2rem 0; padding-top: 1rem; border-top: 1px solid var(--line); }
figure img { max-width: 100%; height: auto; background: #fff; }
figcaption { max-width: 46rem; color: var(--quiet); }
"""


class Picture(NamedTuple):
    """A figure as it was drawn: its name, its SVG and its caption."""

    name: str
    svg: str
    caption: str


def page(title: str, sections: Mapping[str, Sequence[Picture]]) -> str:
    """The pictures of each section with their captions, in an HTML page that loads nothing."""
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name in sections)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<nav>{links}</nav>"]
    for name, pictures in sections.items():
        parts.append(f'<h2 id="{_anchor(name)}">{html.escape(name)}</h2>')
        parts += [_figure(picture) for picture in pictures]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}{view}</head>\n<body>\n{body}\n</body></html>\n'


def _figure(picture: Picture) -> str:
    # As an image an SVG cannot run scripts, and identifiers of one cannot meet those of another.
    data = base64.b64encode(picture.svg.encode()).decode()
    shown = picture.name.replace("_", " ").capitalize()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(picture.caption)}">'
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    return f'<figure id="{html.escape(picture.name)}"><h3>{html.escape(shown)}</h3>{image}{caption}</figure>'


def _anchor(name: str) -> str:
    return f"section-{html.escape(name.lower().replace(' ', '-'))}"
