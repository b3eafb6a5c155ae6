"""A page that plays recorded rounds side by side at their true relative speed, whole in itself. Knows no figure."""

import html
import json
from collections.abc import Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --quiet: #767676; --page: #fff; --line: #ddd; --lost: #efefef; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --quiet: #9a9a9a; --page: #181a1b; --line: #3a3d3f; --lost: #2a2d2f; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 "Liberation Sans", Arial, Helvetica, sans-serif; }
#controls { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; }
#time { flex: 1; min-width: 12rem; }
#lanes { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; margin-top: 1rem; }
.lane h2 { font-size: 1.1rem; border-bottom: 3px solid var(--tone); }
.text { min-height: 9em; white-space: pre-wrap; overflow-wrap: anywhere; } .text .new { background: var(--lost); }
.tree { font: 13px/1.7 "Liberation Mono", "DejaVu Sans Mono", monospace; max-height: 22em; overflow: auto;
  padding: 2px; }
.tree div { overflow-wrap: anywhere; }
.tree span { border-radius: 3px; padding: 0 3px; margin-right: 2px; background: var(--lost); color: var(--quiet); }
.tree .accepted { background: var(--tone); color: #fff; }
.tree .own { background: none; color: var(--ink); outline: 1px solid var(--tone); }
p, .count { color: var(--quiet); }
"""

_SCRIPT = """
const make = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const time = document.getElementById("time"), play = document.getElementById("play");
const speed = document.getElementById("speed"), shown = document.getElementById("shown");
const end = Math.max(...lanes.map(lane => lane.rounds.at(-1).end));
time.max = end;
const views = lanes.map(lane => {
  const box = make("section", "lane");
  box.style.setProperty("--tone", lane.colour);
  const parts = [make("h2", "", lane.name), make("div", "count"), make("div", "text"), make("div", "tree")];
  parts.forEach(part => box.append(part));
  document.getElementById("lanes").append(box);
  return { lane, parts, at: null };
});
// A node that is its parent's first child goes on in its line; every other child begins one.
const branches = round => {
  const lines = [], lineOf = {};
  for (const node of round.nodes) {
    const first = node.parent >= 0 && !(lineOf[node.parent] || {}).taken;
    if (first && lineOf[node.parent]) {
      lineOf[node.parent].taken = true;
      lineOf[node.node] = { line: lineOf[node.parent].line };
    } else {
      lineOf[node.node] = { line: lines.push(make("div")) - 1 };
      lines.at(-1).style.paddingLeft = node.depth + "em";
    }
    lines[lineOf[node.node].line].append(make("span", node.accepted ? "accepted" : "", node.text));
  }
  round.own.forEach(text => lines.push(make("div")) && lines.at(-1).append(make("span", "own", text)));
  return lines;
};
const draw = () => {
  const now = Number(time.value);
  shown.textContent = now.toFixed(0) + " ms";
  for (const view of views) {
    const done = view.lane.rounds.filter(round => round.end <= now + 0.01);
    if (view.at === done.length) continue;
    view.at = done.length;
    const last = done.at(-1), [, count, text, tree] = view.parts;
    const before = view.lane.prefix + done.slice(0, -1).map(round => round.text).join("");
    text.replaceChildren(before, make("span", "new", last ? last.text : ""));
    count.textContent = done.reduce((sum, round) => sum + round.tokens, 0) + " tokens in " + done.length + " rounds";
    tree.replaceChildren(...(last ? branches(last) : []));
  }
};
let since = null;
const step = stamp => {
  if (since === null) return;
  time.value = Math.min(end, Number(time.value) + (stamp - since) * Number(speed.value));
  since = stamp;
  draw();
  if (Number(time.value) >= end) pause(); else requestAnimationFrame(step);
};
const pause = () => { since = null; play.textContent = "Play"; };
const start = () => {
  if (Number(time.value) >= end) time.value = 0;
  play.textContent = "Pause";
  since = performance.now();
  requestAnimationFrame(step);
};
play.addEventListener("click", () => (since === null ? start() : pause()));
time.addEventListener("input", () => { pause(); draw(); });
if (matchMedia("(prefers-reduced-motion: reduce)").matches) { time.value = end; draw(); } else { draw(); start(); }
"""
SPEEDS = (0.1, 0.25, 1.0)


def page(title: str, said: str, lanes: Sequence[dict[str, Any]]) -> str:
    """The page of `lanes` with a sentence above them.

    A lane: name, colour, prefix (text before the first round) and rounds, each with start, end (ms), text, tokens,
    nodes (node, parent, depth, text, accepted; depth first, the root left out) and own, the target's own tokens.
    """
    given = json.dumps(lanes, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    speeds = "".join(f'<option value="{speed}">{speed:g} ×</option>' for speed in SPEEDS)
    controls = (
        '<div id="controls"><button id="play" type="button">Play</button>'
        '<input id="time" type="range" min="0" step="any" value="0" aria-label="time">'
        f'<output id="shown"></output><label>speed <select id="speed">{speeds}</select></label></div>'
    )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = f'<h1>{html.escape(title)}</h1><p>{html.escape(said)}</p>{controls}<div id="lanes"></div>'
    script = f"<script>const lanes = {given};{_SCRIPT}</script>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}{script}</body></html>\n'
