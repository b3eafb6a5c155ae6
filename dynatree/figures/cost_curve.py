"""What a forward over n tokens costs on this machine, above how many tokens each method verified in a round."""

from collections import Counter
from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import axes, captions, grammar, legends, placement, queries, theme

TABLES: tuple[str, ...] = ("costs", "rounds")
SECTION = "Costs"

WIDTH, HEIGHT, STEP = 500, 230, 22
PARTS = {"verify": "target forward", "draft": "draft level"}
SEVERAL = 32  # tokens, in the caption
SHARES = (0.05, 0.25, 1.0)  # of the legend


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Milliseconds by new tokens, a line per format and part; below, shares of rounds. UserError without costs."""
    contexts, costs = _curves(tables)
    chosen = _chosen(tables)
    least, most = (choose(row["ms"] for row in costs) for choose in (min, max))
    widest = max([row["tokens"] for row in costs] + [row["tokens"] for row in chosen])
    x = alt.X(
        "tokens:Q",
        scale=alt.Scale(type="log", base=2, domain=[0.9, widest * 1.12], nice=False),
        axis=alt.Axis(title="new tokens in one forward", values=[2**i for i in range(widest.bit_length())]),
    )
    axis = axes.Values("ms, median", least / 1.2, most * 1.2, log=True)
    tone = alt.Color("tone:N", scale=None)
    rows = [row | {"tone": theme.PHASES[row["part"]], "value": row["ms"], "x": row["tokens"]} for row in costs]
    base = alt.Chart(queries.data(rows), width=WIDTH, height=HEIGHT).encode(x=x, y=axis.y, color=tone)
    lines = base.mark_line(strokeWidth=2).encode(detail=["part:N", "dtype:N"])
    ends = [
        max((row for row in rows if (row["part"], row["dtype"]) == key), key=lambda row: row["tokens"])
        for key in dict.fromkeys((row["part"], row["dtype"]) for row in rows)
    ]
    pixels = placement.apart([HEIGHT * axis.share(end["ms"]) for end in ends], placement.LINE)
    inks = {"verify": theme.INK, "draft": theme.QUIET}
    named = [
        end | {"ink": inks[end["part"]], "value": axis.at(pixel / HEIGHT)}
        for end, pixel in zip(ends, pixels, strict=True)
    ]
    names = (
        alt.Chart(queries.data(named))
        .mark_text(align="left")
        .encode(x=alt.value(WIDTH + 6), y=axis.y, text="dtype:N", color=alt.Color("ink:N", scale=None))
    )
    present = [part for part in PARTS if any(row["part"] == part for row in rows)]
    entries = [legends.Entry(_label(part, contexts), theme.PHASES[part], theme.PHASES[part]) for part in present]
    over = f"Time of a forward after {grammar.plural(contexts['verify'], 'token')}, by format of the weights"
    charts: list[theme.Layers | alt.Chart] = [
        alt.layer(lines, base.mark_point(filled=True, size=28, opacity=1), names).properties(title=over)
    ]
    if chosen:
        entries += [
            legends.Entry(f"{share:.0%} of rounds", theme.FAINT, theme.QUIET, "circle", _size(share))
            for share in SHARES
        ]
        methods = theme.ordered(row["method"] for row in chosen)
        strips = alt.Chart(queries.data(chosen), width=WIDTH, height=alt.Step(STEP)).encode(
            x=x,
            y=alt.Y("name:N", sort=[theme.display(method) for method in methods], title=None).axis(
                ticks=False, domain=False, grid=True
            ),
            size=alt.Size("size:Q", scale=None),
            color=alt.Color("method:N", scale=theme.colour_scale(methods), legend=None),
        )
        charts.append(strips.mark_circle(opacity=0.75).properties(title="Tokens that each method verified in a round"))
    key = legends.boxes(entries, WIDTH + 80)
    return theme.finish(alt.vconcat(key, *charts).resolve_scale(color="independent", size="independent"))


def _size(share: float) -> float:
    """Square pixels of a dot that stands for a share of the rounds."""
    return 4 + 416 * share


def _label(part: str, contexts: Mapping[str, int]) -> str:
    """The part's name, and its context where that is not the target's."""
    own = contexts[part]
    return PARTS[part] if own == contexts["verify"] else f"{PARTS[part]} (after {grammar.plural(own, 'token')})"


def _curves(tables: Mapping[str, pa.Table]) -> tuple[dict[str, int], list[queries.Row]]:
    """By part the context, the target's shortest and the drafter's nearest to it, whose window may lie below all of the
    target's; what forwards of lone requests cost after them. UserError without verification.
    """
    costs = queries.rows(tables, "costs", batch=1)
    if not any(row["part"] == "verify" for row in costs):
        raise UserError(f"no verification costs; parts: {', '.join(sorted({row['part'] for row in costs}))}")
    shortest = min(row["context"] for row in costs if row["part"] == "verify")
    contexts = {
        part: min((row["context"] for row in costs if row["part"] == part), key=lambda context: abs(context - shortest))
        for part in dict.fromkeys(row["part"] for row in costs)
    }
    return contexts, [row for row in costs if row["context"] == contexts[row["part"]]]


def _chosen(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Share of the headline's rounds by tokens fed, the root included, of each method that verifies several."""
    headline = [row for row in tables["rounds"].to_pylist() if row["experiment"] == "headline"]
    result = []
    for method in theme.ordered(row["method"] for row in headline if row["drafted"]):
        drafted = [row["drafted"] for row in headline if row["method"] == method]
        own = [count + 1 for count in drafted if count is not None]
        for tokens, count in sorted(Counter(own).items()):
            share = count / len(own)
            row = {"method": method, "name": theme.display(method), "tokens": tokens, "share": share}
            result.append(row | {"size": _size(share)})
    return result


def caption(tables: Mapping[str, pa.Table]) -> str:
    """What more tokens cost against one in each format, and who verified most and fewest tokens in a round."""
    _, costs = _curves(tables)
    curves: dict[str, dict[int, float]] = {}
    for row in costs:
        if row["part"] == "verify":
            curves.setdefault(row["dtype"], {})[row["tokens"]] = row["ms"]
    wide = max(tokens for tokens in curves[next(iter(curves))] if tokens <= SEVERAL)
    told = [
        f"{grammar.number(curve[wide] / curve[1])} times ({dtype}, from {grammar.number(curve[1])} ms)"
        for dtype, curve in curves.items()
        if wide in curve
    ]
    sentences = [f"A target forward over {wide} tokens takes {grammar.joined(told)} as long as over a single token."]
    chosen = _chosen(tables)
    means = {
        method: sum(row["tokens"] * row["share"] for row in chosen if row["method"] == method)
        for method in dict.fromkeys(row["method"] for row in chosen)
    }
    if means:
        ends = [choose(means, key=lambda name: means[name]) for choose in (min, max)]
        given = [f"{means[name]:.1f} ({theme.display(name)})" for name in dict.fromkeys(ends)]
        sentences.append(f"Methods verified {' to '.join(given)} tokens per round.")
    return captions.short(sentences)
