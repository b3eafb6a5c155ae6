"""Clauses that several captions share: who is fastest, by how much, whether significantly, which intervals there are.

Written from rows of the tables alone; knows no figure and reads no file.
"""

from collections.abc import Mapping, Sequence

from dynatree.errors import UserError
from dynatree.figures.shared import grammar, queries
from dynatree.tables import bootstrap

# Columns of `runs` that say what was done, and not how long it took.
WORK = ("output_ids", "iterations", "target_forwards", "draft_forwards", "drafted", "drafted_depth", "accepted")

Names = Mapping[tuple[str, str], str]
MOST_WORDS = 60


def short(sentences: Sequence[str]) -> str:
    """A caption: of sentences by their weight those that fit into MOST_WORDS; the first always stands."""
    kept, words = [sentences[0]], len(sentences[0].split())
    for sentence in sentences[1:]:
        more = len(sentence.split())
        if more and words + more <= MOST_WORDS:
            kept.append(sentence)
            words += more
    return " ".join(kept)


def in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first sentence of each list, then the second ones, so that no place is left out for another's details."""
    return [each[place] for place in range(max(map(len, lists))) for each in lists if place < len(each)]


def prompts(rows: Sequence[queries.Row]) -> str:
    """`4 prompts, 200 tokens each`, or `2 to 4 prompts` where rows have different numbers of them."""
    least, most = min(row["prompts"] for row in rows), max(row["prompts"] for row in rows)
    text = grammar.plural(most, "prompt") if least == most else f"{least} to {grammar.plural(most, 'prompt')}"
    tokens = sorted({row["output_tokens"] for row in rows if row.get("output_tokens")})
    if not tokens:
        return text
    given = " to ".join(f"{count:,}" for count in dict.fromkeys((tokens[0], tokens[-1])))
    return f"{text}, {given} tokens{' each' if most > 1 else ''}"


def judged(significant: bool) -> str:
    """The word for a comparison."""
    return "significant" if significant else "inconclusive"


def verdict(row: queries.Row) -> str:
    """Whether a speedup differs from 1: `inconclusive with 4 prompts`, `significant with 12 batches`."""
    counted = grammar.plural(row["prompts"], "prompt")
    if row.get("batch", 1) > 1:
        counted = grammar.plural(row["measurements"], "batch", "batches")
    return f"{judged(row['significant'])} with {counted}"


def paired(row: queries.Row, other: queries.Row, runs: Sequence[queries.Row]) -> queries.Row:
    """Of two rows of `summary`: `ratio` of their speedups, a geometric mean prompt by prompt, its interval's `ends`,
    and whether it `differs` from 1; `alike`: they did the same, so that only chance can part them.

    Raises UserError if `runs`, rows of that table, have no prompt of both.
    """
    own, theirs = _of(row, runs), _of(other, runs)
    keys = sorted(set(own) & set(theirs))
    if not keys:
        raise UserError(
            f"{row['experiment']}: {row['method']} and {other['method']} have no prompt of {row['dataset']} in common"
        )
    ratios = [own[key]["speedup"] / theirs[key]["speedup"] for key in keys]
    alone = row["batch"] == 1
    # What was decoded together was measured together: it is drawn together, and counts as one.
    groups = [own[key]["document_id"] if alone else str(own[key]["group"]) for key in keys]
    measured = {prompt for prompt, _ in keys} if alone else set(groups)
    ends = bootstrap.interval(ratios, groups, geometric=True)
    work = [name for name in WORK if name in own[keys[0]]]
    return {
        "ratio": bootstrap.mean(ratios, geometric=True),
        "ends": ends,
        "differs": bootstrap.significant(ends, len(measured)),
        "alike": all(own[key][name] == theirs[key][name] for key in keys for name in work),
    }


def _of(row: queries.Row, runs: Sequence[queries.Row]) -> dict[tuple[str, int], queries.Row]:
    """The runs by (prompt, repeat) that a row of `summary` is the mean of."""
    return {
        (run["prompt_id"], run["repeat"]): run
        for run in runs
        if run["speedup"] is not None and all(run[name] == row[name] for name in queries.SAME)
    }


def percent(ratio: float) -> str:
    """A ratio as a change: `+12 %`, with one decimal below ten."""
    change = 100 * (ratio - 1)
    digits = f"{abs(change):.0f}" if abs(change) >= 9.95 else f"{abs(change):.1f}"
    sign = "" if float(digits) == 0 else "+" if change > 0 else "\u2212"
    return f"{sign}{digits} %"


def change(compared: queries.Row) -> str:
    """What `paired` found: `+12 % [+5.0 %, +18 %], significant`."""
    ends = f" [{', '.join(percent(end) for end in compared['ends'])}]" if compared["ends"] else ""
    return f"{percent(compared['ratio'])}{ends}, {judged(compared['differs'])}"


def fastest(rows: Sequence[queries.Row], names: Names) -> str:
    """Of speedups over autoregressive decoding: `fastest is` who, by how much, whether significant, and who is next."""
    ranked = sorted(rows, key=lambda row: (-row["value"], row["method"], row["settings"]))
    best, *others = ranked
    text = f"is {names[best['method'], best['settings']]} with {grammar.interval(best, '×')}, {verdict(best)}"
    if others:
        text += f" (next {names[others[0]['method'], others[0]['settings']]}, {grammar.number(others[0]['value'])}×)"
    return f"fastest {text}" if best["value"] > 1 else f"no method beats autoregressive decoding; closest {text}"


def fastest_along(rows: Sequence[queries.Row], names: Names, unit: str, place: str) -> list[str]:
    """Sentences: who is fastest at which `x` (of the unit `unit`), and by how much at the largest and the smallest.

    None where there is nobody to compare.
    """
    leaders: dict[str, list[str]] = {}
    lengths = sorted({row["x"] for row in rows})
    for length in lengths:
        best = max((row for row in rows if row["x"] == length), key=lambda row: row["value"])
        name = names[best["method"], best["settings"]] if best["value"] > 1 else "autoregressive decoding"
        leaders.setdefault(name, []).append(f"{length:,}")
    parts = [f"{name} at {grammar.joined(at)}" for name, at in leaders.items()]
    sentences = [f"On {place}, fastest: {'; '.join(parts)} {unit}."] if len(lengths) > 1 else []
    for length in dict.fromkeys((*lengths[-1:], *lengths[:1])):
        said = fastest([row for row in rows if row["x"] == length], names)
        sentences.append(f"On {place}, at {length:,} {unit}: {said}.")
    return sentences


def intervals(
    rows: Sequence[queries.Row], over: str = "documents", few: str = "documents", lines: str = "lines"
) -> str:
    """`lines are 95 % bootstrap intervals over documents`, or that there are too `few` of them for any of `rows`."""
    given = any(row["low"] is not None for row in rows)
    return f"{lines} are 95 % bootstrap intervals over {over}" if given else f"too few {few} for intervals"
