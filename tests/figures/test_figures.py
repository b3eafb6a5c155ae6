"""Every file in dynatree/figures keeps the contract: it draws, it speaks from the data, it refuses empty tables."""

import math
import re
import subprocess
import sys
from functools import cache
from types import ModuleType

import experiments
import pyarrow as pa
import pytest
import tables as synthetic

from dynatree import plugins
from dynatree.errors import UserError
from dynatree.figures.shared import captions, interactive, queries, theme
from dynatree.figures.shared.render import render, svg
from dynatree.tables.schema import TABLES

FIGURES = plugins.names("figures")
SPECULATIVE = ("assisted", "prompt_lookup", "linear", "fixed_tree", "dynatree")
SHOWN = {
    "datasets": synthetic.METHODS,
    "acceptance": SPECULATIVE,
    "timeline": tuple(synthetic.PHASED),
    "tree_attention_mask": ("dynatree",),
    "repetition": ("prompt_lookup", "linear", "dynatree"),
    "position": synthetic.METHODS[1:],
    "benchmark": synthetic.METHODS,
    "llama_cpp": (*synthetic.METHODS, "llama_cpp", "llama_cpp_lookup", "llama_cpp_draft"),
    "phase_breakdown": tuple(synthetic.PHASED),
    "calibration": ("dynatree",),
    "rank_hits": ("dynatree",),
    "oracle_gap": SPECULATIVE,
    "drafter": ("prompt_lookup", "lookup", "oracle"),
    "cost_curve": SPECULATIVE,
    "memory": synthetic.METHODS,
    "perplexity": synthetic.METHODS[1:],
    "batch_size": ("autoregressive", "linear", "dynatree"),
    "precision": ("autoregressive", "dynatree"),
    "latency": synthetic.METHODS,
    "length_scaling": experiments.LENGTH_METHODS,
    "prompt_length": experiments.PROMPT_METHODS,
    "tree_shape": ("dynatree_threshold", "dynatree"),
    "draft_noise": tuple(method for method in experiments.NOISES if method != "autoregressive"),
    "ablation": tuple(method for method, _ in experiments.ABLATED if method != "autoregressive"),
}
SHAPES = {
    "full": {},
    "one prompt, no interval": {"datasets": ("wikipedia",), "prompts": 1, "intervals": False},
    "short trees": {"nodes": 2},
    "two data sets swept": {"swept": 2},
    "few values": {"few": True},
}


@pytest.fixture(params=FIGURES)
def figure(request: pytest.FixtureRequest) -> ModuleType:
    return plugins.load("figures", request.param)


@cache
def specification(figure: ModuleType, shape: str = "full") -> dict:
    """Of the tables that the figure names, made once."""
    tables = synthetic.make(**SHAPES[shape])
    return figure.draw({table: tables[table] for table in figure.TABLES}).to_dict()


@cache
def drawing(figure: ModuleType, shape: str = "full") -> str:
    """The same, as a picture."""
    return svg(specification(figure, shape))


def name(figure: ModuleType) -> str:
    return figure.__name__.rsplit(".", 1)[-1]


def test_nobody_is_fastest_where_none_is_compared() -> None:
    """Guards against an IndexError in the caption of autoregressive decoding alone."""
    assert captions.fastest_along([], {}, "prompt tokens", "wikipedia") == []


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_only_from_the_tables_it_names(figure: ModuleType, shape: str) -> None:
    """Guards against a table that the figure reads but does not declare, and against a chart that comes out empty."""
    assert set(figure.TABLES) <= set(TABLES)
    drawn = drawing(figure, shape)
    assert drawn.count("<path") + drawn.count("<rect") + drawn.count("<line") > 20
    assert "NaN" not in drawn and "undefined" not in drawn and ">null<" not in drawn


def test_every_method_is_named_in_the_drawing(figure: ModuleType) -> None:
    """Guards against a method that silently drops out of a figure, or a label cut short."""
    drawn = drawing(figure)
    assert not [method for method in SHOWN.get(name(figure), ()) if theme.display(method) not in drawn]


def test_empty_tables_are_refused(figure: ModuleType) -> None:
    """Guards against an empty picture where the aggregation found no run."""
    for speak in (figure.draw, figure.caption):
        with pytest.raises(UserError):
            speak(synthetic.empty())


def test_says_its_section_of_the_report(figure: ModuleType) -> None:
    """Guards against a figure that the report files under "Other"."""
    assert figure.SECTION.istitle() and figure.SECTION != "Other"


def test_missing_table_is_named(figure: ModuleType) -> None:
    """Guards against a KeyError that does not say which table to make."""
    with pytest.raises(UserError, match=figure.TABLES[0]):
        figure.draw({})


def test_caption_follows_the_data(figure: ModuleType) -> None:
    """Guards against a caption that praises one method whatever the data say."""
    captions = {winner: figure.caption(synthetic.make(winner=winner)) for winner in ("dynatree", "linear")}
    assert captions["dynatree"] != captions["linear"]
    assert all("\n" not in text and "None" not in text and "nan" not in text.lower() for text in captions.values())


BANNED = (
    "plain step",
    "plain decoding",
    "plain loop",
    "resolved",
    "behind",
    "stands in",
    "rival",
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("winner", ["dynatree", "linear", "autoregressive"])
def test_captions_are_short_and_in_the_field_s_words(figure: ModuleType, shape: str, winner: str) -> None:
    """Guards against captions that nobody reads to the end, and words that only this project has."""
    text = figure.caption(synthetic.make(**SHAPES[shape], winner=winner))
    assert len(text.split()) <= captions.MOST_WORDS
    assert not [word for word in BANNED if word in text.lower()]


def test_words_in_the_drawing_are_the_field_s(figure: ModuleType) -> None:
    """The same for titles, legends and axes."""
    drawn = " ".join(re.findall(r">([^<>]+)</text>", drawing(figure))).lower()
    assert not [word for word in BANNED if word in drawn]


def test_a_caption_drops_what_does_not_fit() -> None:
    """Guards against a cut sentence, and against a first one that is lost."""
    long = "word " * captions.MOST_WORDS
    assert captions.short(["First.", long.strip(), "Last."]) == "First. Last."
    assert captions.short([long + "more."]) == long + "more."
    assert captions.in_turn([["a", "b"], ["c"], []]) == ["a", "c", "b"]


def test_a_winning_baseline_is_said_to_win() -> None:
    """Guards against hiding that no speculative method beats autoregressive decoding."""
    caption = plugins.load("figures", "datasets").caption(synthetic.make(winner="autoregressive"))
    assert "no method beats autoregressive decoding; closest is" in caption


@pytest.mark.parametrize(
    ("prompts", "said"), [(4, "inconclusive with 4 prompts"), (12, ", significant with 12 prompts")]
)
def test_caption_says_whether_a_speedup_is_significant(prompts: int, said: str) -> None:
    """Guards against claiming a speedup that the number of prompts does not carry."""
    assert said in plugins.load("figures", "datasets").caption(synthetic.make(prompts=prompts))


def test_the_drafter_figure_says_what_is_fastest() -> None:
    """Guards against a caption that takes a tree to be ahead of the chains, or lookup behind them, unread."""
    caption = plugins.load("figures", "drafter").caption
    won, lost = (caption(synthetic.make(winner=winner)) for winner in ("dynatree", "linear"))
    assert "a static tree (D 3, B 2, N 6) with 1.70×; a chain (K 3) with 1.50× is the best chain" in won
    assert "a chain (K 3) with 1.50×, and no tree is faster" in lost
    alone = caption(synthetic.make(datasets=("wikipedia",)))
    assert "Lookup alone is no faster: Lookup (K 8) with 1.40×" in alone and "An oracle reaches 19.0×" in alone
    rows = synthetic.make()["drafter"].to_pylist()
    slow = [row | {"speedup": row["speedup"] and row["speedup"] / 2} for row in rows]
    assert "slower than autoregressive" in caption({"drafter": pa.Table.from_pylist(slow, schema=TABLES["drafter"])})
    assert "slower than autoregressive" not in won + lost


def test_the_drafter_figure_says_whose_weights_agree() -> None:
    """Guards against agreement that is taken for that of the quantised models, whose costs stand beside it."""
    drawn = drawing(plugins.load("figures", "drafter"))
    assert ">both models before any quantisation<" in drawn and ">and by that agreement<" in drawn


def test_settings_names_are_read_back() -> None:
    """Guards against losing a knob whose name holds an underscore or whose value is null."""
    read = queries.knobs("D8_B3_tau0.03_NNone_draft_vocabulary8192_lookupFalse_rate1e-05")
    assert read == {
        "D": "8", "B": "3", "tau": "0.03", "N": "None", "draft_vocabulary": "8192", "lookup": "False", "rate": "1e-05",
    }  # fmt: skip


def test_colours_are_fixed_and_distinct() -> None:
    """Guards against a colour that depends on which other methods are drawn."""
    assert len({theme.colour(method) for method in synthetic.METHODS}) == len(synthetic.METHODS)
    assert theme.colour("a_new_method") == theme.colour("a_new_method") in theme.SPARE
    assert not set(theme.SPARE) & set(theme.COLOURS.values())


def test_phases_have_colours_of_their_own() -> None:
    """Guards against a bar of a phase that reads as a method, and two methods of one figure that look alike."""
    phases = {*theme.PHASES.values(), *theme.BESIDES.values()}
    methods = {tone for name, tone in theme.COLOURS.items() if name not in ("fixed_d5_b2", *theme.FORMATS)}
    assert all(apart(one, other) > 40 for one in phases for other in methods)
    assert apart(theme.colour("fixed_tree"), theme.colour("optimal")) > 100


def apart(one: str, other: str) -> float:
    """Distance of two colours, in steps of 1/255."""
    both = ([int(tone[place : place + 2], 16) for place in (1, 3, 5)] for tone in (one, other))
    return math.dist(*both)


def test_drawing_twice_gives_the_same(figure: ModuleType) -> None:
    """Guards against identifiers from a running counter, of the chart or of Vega, which make unchanged figures look
    changed."""
    once, again = specification(figure), figure.draw(synthetic.make()).to_dict()
    assert again == once
    assert interactive.interactive(again) == interactive.interactive(once)
    assert svg(again) == drawing(figure)


@pytest.mark.parametrize("name", ["timeline", "tree_shape"])
def test_rendering_twice_gives_the_same_bytes(name: str, tmp_path) -> None:
    """The same for each kind of file, which is made of the drawing alone."""
    figure, written = plugins.load("figures", name), []
    for folder in ("first", "second"):
        tables = synthetic.make()
        render(figure.draw(tables), tmp_path / folder, "figure", figure.caption(tables))
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())})
    assert set(written[0]) == {"figure.svg", "figure.png", "figure.html"}
    assert written[0] == written[1]


def test_the_page_works_offline_and_tokens_cannot_break_it(tmp_path) -> None:
    """Guards against libraries from a network, and token text that closes the page's script."""
    tables = synthetic.make(word="</script>")
    figure = plugins.load("figures", "timeline")
    render(figure.draw(tables), tmp_path, "figure", 'caption with "<quotes>"')
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert "src=" not in page.rpartition("const spec")[0].partition("<script")[0]
    assert "</script>" not in page.rpartition("const spec = ")[2].partition("\n")[0]
    assert "caption with &quot;&lt;quotes&gt;&quot;" in page


def test_figures_need_no_model_library() -> None:
    """Guards against figures that load torch or transformers, seconds and gigabytes for a plot."""
    code = (
        "import sys; from dynatree import plugins; from dynatree.figures.shared import render;"
        "[plugins.load('figures', name) for name in plugins.names('figures')];"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
