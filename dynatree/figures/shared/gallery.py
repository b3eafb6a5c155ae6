"""A page of drawn figures by section, whole in itself: tooltips, and one method alone in all of them.

Knows no figure.
"""

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import vl_convert

from dynatree.figures.shared import interactive, theme

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --quiet: #666; --page: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --quiet: #aaa; --page: #181a1b; --line: #3a3d3f; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; }
nav { display: flex; flex-wrap: wrap; gap: 0 1rem; } a { color: inherit; }
figure { margin: 2rem 0; padding-top: 1rem; border-top: 1px solid var(--line); scroll-margin-top: 9rem; }
figure img, .plot svg { max-width: 100%; height: auto; background: #fff; }
.plot { display: block; } .plot .vega-bindings { display: none; }
figcaption { max-width: 46rem; color: var(--quiet); }
#methods { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .25rem; padding: .5rem 0;
  max-height: 8rem; overflow: auto; background: var(--page); border-bottom: 1px solid var(--line); }
#methods button { font: inherit; font-size: .8rem; color: var(--ink); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: 4px; padding: .1rem .5rem; }
#methods button::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .4em;
  background: var(--tone); outline: 1px solid var(--line); }
#methods button[aria-pressed=true] { border-color: var(--ink); font-weight: bold; }
@media (max-width: 40rem) { #methods { position: static; max-height: none; } figure { scroll-margin-top: 0; } }
"""

_SCRIPT = """
const views = [], bar = document.getElementById("methods");
let only = "";
const isolate = method => {
  only = method === only ? "" : method;
  for (const button of bar.children) button.setAttribute("aria-pressed", String(button.value === only));
  // A figure that lacks the method stays whole.
  views.forEach(({ view, own }) => view.signal(ONLY, own.includes(only) ? only : "").runAsync());
};
for (const method of methods) {
  const button = document.createElement("button");
  button.type = "button";
  button.value = method.name;
  button.textContent = method.shown;
  button.style.setProperty("--tone", method.colour);
  button.setAttribute("aria-pressed", String(method.name === only));
  button.addEventListener("click", () => isolate(method.name));
  bar.append(button);
}
// The mode is told: without a schema vega-embed takes a drawing that is a `concat` for one of vega, and draws nothing.
for (const [name, drawing] of Object.entries(drawings))
  vegaEmbed(`#${name} .plot`, drawing, { mode: "vega-lite", renderer: "svg", actions: false }).then(({ view }) => {
    const own = (drawing.params || []).filter(param => param.name === ONLY).flatMap(param => param.bind.options);
    if (!own.length) return;
    views.push({ view, own });
    view.addEventListener("click", (_, item) => item && item.datum && item.datum.method && isolate(item.datum.method));
  }).catch(console.error);
"""


class Picture(NamedTuple):
    """A figure as it was drawn: its name, its SVG, its caption, and its interactive drawing, where there is one."""

    name: str
    svg: str
    caption: str
    drawing: dict[str, Any] | None = None


def page(title: str, sections: Mapping[str, Sequence[Picture]]) -> str:
    """The pictures of each section with their captions, in an HTML page that loads nothing."""
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name in sections)
    drawings = {
        each.name: _offline(each.drawing) for pictures in sections.values() for each in pictures if each.drawing
    }
    said = (
        "Point at a mark to read its method, settings, interval and number of prompts; click on a method, here or in "
    )
    said += "a figure, to see it alone."
    parts = [f"<h1>{html.escape(title)}</h1>", f"<nav>{links}</nav>"]
    parts += [f"<p>{said}</p>", '<div id="methods" role="group" aria-label="methods"></div>'] if drawings else []
    for name, pictures in sections.items():
        parts.append(f'<h2 id="{_anchor(name)}">{html.escape(name)}</h2>')
        parts += [_figure(picture) for picture in pictures]
    parts += _scripts(drawings) if drawings else []
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}{view}</head>\n<body>\n{body}\n</body></html>\n'


def _offline(drawing: Mapping[str, Any]) -> dict[str, Any]:
    """The drawing without the address of its schema, which nothing needs here."""
    return {name: value for name, value in drawing.items() if name != "$schema"}


def _scripts(drawings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The libraries once, then the drawings and what the reader can do with them."""
    every = theme.ordered(method for drawing in drawings.values() for method in interactive.methods(drawing))
    # Variants that one figure alone has are isolated there, by a click on them.
    listed = [name for name in every if name in theme.NAMES]
    methods = [{"name": name, "shown": theme.display(name), "colour": theme.colour(name)} for name in listed]
    yield f"<script>{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}</script>"
    yield f"<script>const ONLY = {_json(interactive.ONLY)}, methods = {_json(methods)}, drawings = {_json(drawings)};"
    yield f"{_SCRIPT}</script>"


def _json(value: Any) -> str:
    """As JSON that cannot close its script."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _figure(picture: Picture) -> str:
    if picture.drawing:
        image = f'<div class="plot" role="img" aria-label="{html.escape(picture.caption)}"></div>'
    else:
        # As an image an SVG cannot run scripts, and identifiers of one cannot meet those of another.
        data = base64.b64encode(picture.svg.encode()).decode()
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{html.escape(picture.caption)}">'
    shown = picture.name.replace("_", " ").capitalize()
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    return f'<figure id="{html.escape(picture.name)}"><h3>{html.escape(shown)}</h3>{image}{caption}</figure>'


def _anchor(name: str) -> str:
    return f"section-{html.escape(name.lower().replace(' ', '-'))}"
