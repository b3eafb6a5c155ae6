"""What a forward over n tokens costs on this machine, above how many tokens each method verified in a round."""

from collections import Counter
from collections.abc import Mapping

import altair as alt
import pyarrow as pa

from dynatree.errors import UserError
from dynatree.figures.shared import grammar, legends, queries, theme

TABLES: tuple[str, ...] = ("costs", "rounds")
SECTION = "Costs"

WIDTH, HEIGHT, STEP = 520, 230, 24
PARTS = {"verify": ("target forward", theme.INK), "draft": ("draft level", theme.QUIET)}
TICKS = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])


def draw(tables: Mapping[str, pa.Table]) -> alt.TopLevelMixin:
    """Milliseconds by new tokens, a line per context; below, shares of rounds. Raises UserError without costs."""
    costs, chosen = queries.rows(tables, "costs", batch=1), _chosen(tables)
    contexts = sorted({row["context"] for row in costs})
    least, most = (choose(row["ms"] for row in costs) for choose in (min, max))
    widest = max([row["tokens"] for row in costs] + [row["tokens"] for row in chosen])
    x = alt.X(
        "tokens:Q",
        scale=alt.Scale(type="log", base=2, domain=[0.9, widest * 1.12], nice=False),
        axis=alt.Axis(title="new tokens in one forward", values=[2**i for i in range(widest.bit_length())]),
    )
    colours = alt.Scale(domain=list(PARTS), range=[colour for _, colour in PARTS.values()])
    dashes = alt.Scale(domain=contexts, range=[DASHES[i % len(DASHES)] for i in range(len(contexts))])
    base = alt.Chart(queries.data(costs), width=WIDTH, height=HEIGHT).encode(
        x=x,
        y=alt.Y(
            "ms:Q",
            scale=alt.Scale(type="log", domain=[least / 1.2, most * 1.2], nice=False),
            axis=alt.Axis(title="ms, median", values=[t for t in TICKS if least / 1.2 <= t <= most * 1.2]),
        ),
        color=alt.Color("part:N", scale=colours, legend=None),
    )
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("context:N", scale=dashes, legend=alt.Legend(title="context, tokens", orient="top")),
        detail=["part:N", "context:N"],
    )
    parts = [part for part in PARTS if any(row["part"] == part for row in costs)]
    legend = legends.boxes([(PARTS[part][0], PARTS[part][1], PARTS[part][1]) for part in parts], WIDTH)
    charts: list[alt.LayerChart | alt.Chart] = [legend, lines + base.mark_point(filled=True, size=28, opacity=1)]
    if chosen:
        methods = theme.ordered(row["method"] for row in chosen)
        names = [theme.display(method) for method in methods]
        strips = alt.Chart(queries.data(chosen), width=WIDTH, height=alt.Step(STEP)).encode(
            x=x,
            y=alt.Y("name:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, grid=True)),
            size=alt.Size(
                "share:Q",
                scale=alt.Scale(type="linear", domain=[0, 1], range=[4, 420]),
                legend=alt.Legend(title="share of rounds", orient="bottom", format="%", values=[0.05, 0.25, 1]),
            ),
            color=alt.Color("method:N", scale=theme.colour_scale(methods), legend=None),
        )
        charts.append(strips.mark_circle(opacity=0.75).properties(title="Tokens that each method verified in a round"))
    return theme.finish(alt.vconcat(*charts).resolve_scale(color="independent", size="independent"))


def _chosen(tables: Mapping[str, pa.Table]) -> list[queries.Row]:
    """Share of the headline's rounds by tokens fed, the root included, of each method that verifies several."""
    headline = [row for row in tables["rounds"].to_pylist() if row["experiment"] == "headline"]
    result = []
    for method in theme.ordered(row["method"] for row in headline if row["drafted"]):
        drafted = [row["drafted"] for row in headline if row["method"] == method]
        own = [count + 1 for count in drafted if count is not None]
        for tokens, count in sorted(Counter(own).items()):
            share = count / len(own)
            result.append({"method": method, "name": theme.display(method), "tokens": tokens, "share": share})
    return result


def caption(tables: Mapping[str, pa.Table]) -> str:
    """What more tokens cost against one, what a draft level costs, and how many tokens DynaTree chose."""
    costs = queries.rows(tables, "costs", batch=1)
    verify = [row for row in costs if row["part"] == "verify"]
    if not verify:
        raise UserError(f"no verification costs; parts: {', '.join(sorted({row['part'] for row in costs}))}")
    context = min(row["context"] for row in verify)
    curve = {row["tokens"]: row["ms"] for row in verify if row["context"] == context}
    steps = [n for n in (2, 8, 32, 128) if n in curve]
    text = f"After a context of {grammar.plural(context, 'token')} a target forward over one token takes "
    text += f"{curve[1]:.1f} ms; "
    text += grammar.joined([f"{curve[n] / curve[1]:.2f} times that over {n}" for n in steps]) + "."
    level = [row["ms"] for row in costs if row["part"] == "draft" and row["context"] == context and row["tokens"] == 1]
    if level:
        text += f" A draft of one token costs {level[0] / curve[1]:.1%} of that."
    for method in theme.ordered(row["method"] for row in _chosen(tables)):
        own = [row for row in _chosen(tables) if row["method"] == method]
        mean = sum(row["tokens"] * row["share"] for row in own)
        undrafted = sum(row["share"] for row in own if row["tokens"] == 1)
        text += f" {theme.display(method)} verified {mean:.1f} tokens per round on average"
        text += f", {undrafted:.0%} of its rounds were autoregressive steps." if undrafted >= 0.005 else "."
    return text
