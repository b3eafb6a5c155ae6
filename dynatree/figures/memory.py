"""What each method holds at its peak, and how much of that are keys and values. Knows no run, only the measurement."""

from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.figures.shared import captions, grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("memory",)
SECTION = "Costs"
SHOWS = "memory"

PARTS = {
    "target's weights": ("weights_mib", "#44546a"),
    "drafter's weights": ("drafter_weights_mib", "#8fa3bf"),
    "loaded besides: Python, libraries, compiled graphs": ("before", "#cfcfcf"),
    "target's keys and values": ("cache_used_mib", "#b3475e"),
    "drafter's keys and values": ("drafter_cache_used_mib", "#e5a3b1"),
    "the rest of the request": ("rest", "#8a8a8a"),
}
COMPUTED = ("before", "rest")
CACHES = ("target's keys and values", "drafter's keys and values")
WIDTHS, STEP = (330, 190), 22


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """A row per method; left the peak by parts, right keys and values alone. Raises UserError without measurements."""
    places = _places(tables)
    everywhere = [row for rows in places.values() for row in rows]
    charts = []
    for title, rows in places.items():
        last = title == list(places)[-1]
        peak = _panel(rows, everywhere, list(PARTS), "peak_mib", "peak, MiB" if last else None, True)
        cache = _panel(rows, everywhere, list(CACHES), "cache", "keys and values, MiB" if last else None, False)
        charts.append(alt.hconcat(peak, cache, title=title, spacing=20))
    entries = [(name, tone, tone) for name, (_, tone) in PARTS.items()] + [
        ("allocated for keys and values", "white", theme.INK)
    ]
    return theme.finish(alt.vconcat(legends.boxes(entries, sum(WIDTHS)), *charts))


def _panel(
    rows: list[queries.Row], everywhere: list[queries.Row], parts: list[str], total: str, title: str | None, first: bool
) -> theme.Layers:
    """Stacked bars of `parts`, `total` in words right of them; keys and values with an outline of what is allocated."""
    y = alt.Y(
        "label:N",
        title=None,
        sort=[row["label"] for row in rows],
        axis=alt.Axis(ticks=False, domain=False, labels=first, labelPadding=6),
    )
    ends = [max(row[total], 0.0 if first else row["allocated"] or 0.0) for row in everywhere]
    scale = alt.Scale(domain=[0, max(ends) * (1.12 if first else 1.45)], nice=False)
    bars, words, outlines = [], [], []
    for row in rows:
        end = 0.0
        for part in parts:
            column, tone = PARTS[part]
            bars.append({"label": row["label"], "start": end, "end": end + row[column], "tone": tone})
            end += row[column]
        words.append({"label": row["label"], "end": end, "words": grammar.number(row[total])})
        if not first and row["allocated"] is not None:
            outlines.append({"label": row["label"], "start": 0.0, "end": row["allocated"]})
            words[-1]["end"] = max(end, row["allocated"])
            words[-1]["words"] += f" of {grammar.number(row['allocated'])}"
    base = alt.Chart(queries.data(bars), width=WIDTHS[0 if first else 1], height=alt.Step(STEP))
    x = alt.X("start:Q", scale=scale, axis=alt.Axis(title=title, tickCount=5 if first else 4))
    layers = [base.mark_bar(height=14).encode(x=x, x2="end:Q", y=y, color=alt.Color("tone:N", scale=None))]
    if outlines:
        outline = alt.Chart(queries.data(outlines)).mark_bar(height=14, filled=False, stroke=theme.INK, strokeWidth=1)
        layers.append(outline.encode(x=x, x2="end:Q", y=y))
    text = alt.Chart(queries.data(words)).mark_text(align="left", dx=5, color=theme.INK)
    layers.append(text.encode(x=alt.X("end:Q", scale=scale), y=y, text="words:N"))
    return alt.layer(*layers)


def _places(tables: Mapping[str, pa.Table]) -> dict[str, list[queries.Row]]:
    """Rows by data set and lengths, in drawing order, with `label`, `cache`, `allocated` (all in MiB) and `rest`."""
    rows = queries.rows(tables, "memory")
    names = queries.labels((row["method"], row["settings"]) for row in rows)
    order = list(names)
    places: dict[str, list[queries.Row]] = {}
    for row in sorted(rows, key=lambda row: (row["dataset"], order.index((row["method"], row["settings"])))):
        weights = row["weights_mib"] + row["drafter_weights_mib"]
        before = max(0.0, min(row["loaded_mib"], row["peak_mib"]) - weights)
        held = [before, *(row[column] for column, _ in PARTS.values() if column not in COMPUTED)]
        allocated = [row["cache_allocated_mib"], row["drafter_cache_allocated_mib"]]
        title = f"{row['dataset']} ({row['prompt_tokens']} prompt tokens, {row['output_tokens']} more)"
        places.setdefault(title, []).append(
            row
            | {"label": names[row["method"], row["settings"]], "before": before}
            | {"rest": max(0.0, row["peak_mib"] - sum(held))}
            | {"cache": sum(row[PARTS[part][0]] for part in CACHES)}
            | {"allocated": None if None in allocated else sum(allocated)}
        )
    return places


def caption(tables: Mapping[str, pa.Table]) -> str:
    """Who needs least and most, how much more than autoregressive decoding, and what keys and values take."""
    lists = []
    for title, rows in _places(tables).items():
        ranked = sorted(rows, key=lambda row: (row["peak_mib"], row["label"]))
        least, most = ranked[0], ranked[-1]
        text = f"On {title}, {least['label']} needs least with {grammar.number(least['peak_mib'])} MiB"
        if len(ranked) > 1:
            text += f" and {most['label']} most with {grammar.number(most['peak_mib'])} MiB"
        sentences = [text + "."]
        usual = next((row for row in rows if row["method"] == queries.AUTOREGRESSIVE), None)
        drafting = [row for row in ranked if row["drafter_weights_mib"]]
        if usual and drafting:
            ends = [f"{_more(row['peak_mib'] - usual['peak_mib'])} ({row['label']})" for row in drafting]
            given = f"{ends[0]} to {ends[-1]}" if len(ends) > 1 else ends[0]
            sentences.append(f"With a drafter model the peak is {given} than autoregressive decoding's.")
        largest = max(rows, key=lambda row: row["cache"])
        took = f"{grammar.number(largest['cache'])} MiB ({largest['label']})"
        lists.append([*sentences, f"Keys and values take at most {took}."])
    return captions.short(captions.in_turn(lists))


def _more(difference: float) -> str:
    return f"{grammar.number(abs(difference))} MiB {'more' if difference >= 0 else 'less'}"
