"""params.yaml is refused with one line that names the key, the value and the choices."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynatree.errors import UserError
from dynatree.study import params, plugin_checks
from tests.study.values import RAW, changed


def places(section: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys and positions that lead to every value of params.yaml, whole sections among them."""
    if not isinstance(section, dict | list):
        return [at]
    below = section.items() if isinstance(section, dict) else enumerate(section)
    return [at] * bool(at) + [place for key, value in below for place in places(value, (*at, key))]


def said(raw: dict[str, Any], knobs: bool = False) -> str:
    with pytest.raises(UserError) as caught:  # noqa: PT012
        checked = params.check(raw)
        assert knobs
        plugin_checks.check(checked)
    return str(caught.value)


def test_the_projects_own_parameters_pass() -> None:
    """Guards against a params.yaml that its own checks refuse."""
    plugin_checks.check(params.check(RAW))


def test_a_scale_brings_its_own_models_text_and_machine() -> None:
    """Guards against a scale of other models that takes an edit of five keys, of which one is forgotten."""
    paper = params.check(changed("scale", "paper"))
    assert (paper.pair, paper.dtype, paper.device) == ("pythia-2.8b", "float16", "cuda")
    assert paper.datasets == ["wikitext", "pg19"]
    assert {name for experiment in paper.experiments.values() for name in experiment.datasets} == {*paper.datasets}
    laptop = params.check(RAW)
    assert (laptop.pair, laptop.datasets) == (RAW["pair"], RAW["datasets"])
    assert "penalised" not in laptop.experiments
    assert "penalised" in paper.experiments
    # Fewer data sets are nobody's mistake while another scale is active.
    few = changed("datasets", ["wikipedia"])
    few["experiments"]["prompt_length"]["datasets"] = few["tuning"] = ["wikipedia"]
    assert params.check(few).datasets == ["wikipedia"]


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        ("scale", "huge", ["scale: no 'huge'", "tiny, laptop"]),
        ("pair", "gpt5", ["pair: no 'gpt5'", "smollm2"]),
        ("datasets", ["wikipedia", "bible"], ["datasets: no 'bible'", "gutenberg"]),
        ("datasets", [], ["datasets:", "at least 1"]),
        ("datasets", ["wikipedia", "wikipedia"], ["datasets:", "twice"]),
        ("figures", ["datasets", "datasets"], ["figures:", "twice"]),
        ("figures", ["portrait"], ["figures: no 'portrait'", "acceptance"]),
        ("timeline", ["linear", "linear"], ["timeline:", "twice"]),
        ("timeline", ["magic"], ["timeline: no 'magic'", "dynatree"]),
        ("methods.dynatree.decoder", "magic", ["methods.dynatree.decoder: no 'magic'", "speculative"]),
        ("methods.dynatree.decoder", ..., ["methods.dynatree.decoder", "required"]),
        ("methods.dynatree.policy", "magic", ["methods.dynatree.policy: no 'magic'", "cost_aware"]),
        ("methods.dynatree.drafting", "oracle", ["methods.dynatree.drafting: no 'oracle'", "model"]),
        ("methods.autoregressive", ..., ["methods: no 'autoregressive'"]),
        ("experiments.penalised.methods", ["autoregressive", "magic"], ["experiments.penalised.methods: no 'magic'"]),
        ("experiments.penalised.methods", ["linear"], ["experiments.penalised.methods: no 'autoregressive'"]),
        ("experiments.penalised.datasets", ["pg19"], ["experiments.penalised.datasets: no 'pg19'", "gutenberg"]),
        ("experiments.chains.settings", {"magic": ["K3"]}, ["experiments.chains.settings: no 'magic'"]),
        ("experiments.chains.settings", {"linear": ["K3", "K3"]}, ["experiments.chains", "K3 stands there twice"]),
        ("experiments.chains.settings", {"autoregressive": []}, ["autoregressive stands in more than one of"]),
        ("experiments.chains.also", {"linear": {"decoder": "magic"}}, ["linear stands in more than one of"]),
        ("experiments.chains.also", {"mine": {"decoder": "magic"}}, ["experiments.chains.also.mine.decoder"]),
        ("experiments.chains.also", {"dynatree": {"decoder": "transformers"}}, ["'dynatree' is one of `methods`"]),
        ("experiments.chains.also", {"mine": {"like": "dynatre"}}, ["also.mine.like: no 'dynatre'", "fixed_tree, dyn"]),
        ("experiments.chains.also", {"mine": {"depth": 3}}, ["also.mine", "decoder None, like None", "one of both"]),
        ("experiments.ablation.also.without_lookup.decoder", "speculative", ["'speculative', like 'dynatree'", "both"]),
        (
            "experiments.ablation.also.without_lookup.drafting",
            "oracle",
            ["without_lookup.drafting: no 'oracle'", "lookup"],
        ),
        ("benchmark.also.optimal", {"like": "magic"}, ["benchmark.also.optimal.like: no 'magic'", "dynatree"]),
        ("tuning", ["pg19"], ["tuning: no 'pg19'", "wikipedia, gutenberg"]),
        ("tuning", ["wikipedia", "wikipedia"], ["tuning:", "twice"]),
        ("experiments.prompt_length.prompt_tokens", [0], ["experiments.prompt_length.prompt_tokens", "0"]),
        ("experiments.prompt_length.batches", [2, 2], ["experiments.prompt_length.batches", "2 stands there twice"]),
        ("experiments.runs", {"datasets": ["wikipedia"], "methods": ["autoregressive"]}, ["experiments.runs", "taken"]),
        ("scales.tiny.experiments.magic", {"prompts": 1, "output_tokens": 2}, ["tiny.experiments: no 'magic'"]),
        ("scales.study.experiments.tree_shape.settings", {"linear": []}, ["tree_shape.settings: no 'linear'"]),
        (
            "scales.paper.experiments.tree_shape.settings.dynatree_threshold",
            ["D8_B3_tau0.03_N64"],
            ["scales.paper.experiments.tree_shape.settings.dynatree_threshold: D8_B3_tau0.03_N64 stands there twice"],
        ),
        ("scales.tiny.experiments", {}, ["scales.tiny.experiments: no 'default'"]),
        ("memory", ["linear", "linear"], ["memory:", "twice"]),
        ("sources.wikipedia.kind", "rumour", ["sources.wikipedia.kind: no 'rumour'", "gutenberg"]),
        ("sources.wikipedia.evaluation_share", 1.5, ["sources.wikipedia.evaluation_share", "1.5"]),
        ("sources.wikipedia.start", "middle", ["sources.wikipedia.start", "'body' or 'interior'", "'middle'"]),
        ("seed", "lucky", ["seed", "integer", "'lucky'"]),
        ("seed", -1, ["seed", "-1"]),
        ("threads", 0, ["threads", "0"]),
        ("dtype", "int2", ["dtype", "float32", "int4", "'int2'"]),
        ("device", "tpu", ["device", "'cpu' or 'cuda'", "'tpu'"]),
        ("scales.tiny.prompts", 0, ["scales.tiny.prompts", "0"]),
        ("scales.tiny.prompts", "two", ["scales.tiny.prompts", "'two'"]),
        ("scales.tiny.output_tokens", ..., ["scales.tiny.output_tokens", "required"]),
        ("scales.tiny.colour", "red", ["scales.tiny.colour", "not permitted", "'red'"]),
        ("scales.study.experiments.prompt_length.prompt_tokens", [0], ["prompt_tokens", "0; give numbers from 1"]),
        ("scales.study.experiments.prompt_length.prompt_tokens", [50], ["prompt_tokens: 50 is one of", "already"]),
        ("scales.study.experiments.batch_size.prompt_tokens", [50], ["batch_size.prompt_tokens", "has no prompt_tok"]),
        ("benchmark.llama_cpp.draft", {"tokens": [1]}, ["benchmark.llama_cpp.draft.draft_tokens", "required"]),
        (
            "benchmark.llama_cpp.lookup.max_ngram",
            [0],
            ["benchmark.llama_cpp.lookup.max_ngram", "0; give numbers from 1"],
        ),
        ("benchmark.llama_cpp.oracle", {}, ["benchmark.llama_cpp.oracle", "not permitted"]),
        ("scales.paper.instead.pair", "nobody", ["scales.paper.instead.pair", "'nobody'", "pythia-2.8b"]),
        ("scales.paper.instead.datasets", ["nothing", "pg19"], ["scales.paper.instead.datasets", "'nothing'"]),
        ("scales.laptop.instead", {"datasets": ["pg19"]}, ["instead.datasets: ['pg19']", "['wikipedia', 'gutenberg']"]),
        ("scales.laptop.leaves_out", ["ablations"], ["scales.laptop.leaves_out: no 'ablations'", "ablation"]),
        ("scales.paper.instead.dtype", "float8", ["scales.paper.instead.dtype", "'float8'"]),
        ("benchmark.grids.linear.draft_tokens", [], ["linear.draft_tokens: []; give at least 1"]),
        ("benchmark.repeated", ["nobody"], ["benchmark.repeated", "'nobody'", "dynatree"]),
        ("sede", 3, ["sede", "not permitted"]),
    ],
)
def test_a_wrong_value_is_named(place: str, value: Any, parts: list[str]) -> None:
    """Guards against errors that leave the reader to search."""
    message = said(changed(place, value))
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        ("methods.dynatree.depth", -1, ["methods.dynatree", "depth", "-1"]),
        ("methods.dynatree.branch", 0, ["methods.dynatree", "branch", "0"]),
        ("methods.dynatree.threshold", 2, ["methods.dynatree", "threshold", "2"]),
        ("methods.dynatree.threshold", "low", ["methods.dynatree", "threshold", "'low'"]),
        ("methods.dynatree.budget", ..., ["methods.dynatree", "budget", "required"]),
        ("methods.dynatree.width", 3, ["methods.dynatree", "width", "3"]),
        ("methods.dynatree.policy", ..., ["methods.dynatree", "policy", "required"]),
        ("methods.autoregressive.depth", 3, ["methods.autoregressive", "depth", "not permitted"]),
        ("methods.transformers.depth", 3, ["methods.transformers", "depth", "not permitted"]),
        ("methods.assisted.schedule", "never", ["methods.assisted", "schedule", "'never'", "constant"]),
        ("methods.prompt_lookup.max_ngram", 0, ["methods.prompt_lookup", "max_ngram", "0"]),
        ("methods.linear.draft_tokens", -2, ["methods.linear", "draft_tokens", "-2"]),
        (
            "experiments.tree_shape.settings.dynatree_threshold",
            ["D8_B0_tau0.03_N64"],
            ["experiments.tree_shape.settings.dynatree_threshold.D8_B0_tau0.03_N64", "branch", "0"],
        ),
        (
            "experiments.tree_shape.settings.dynatree_threshold",
            ["D8_X3"],
            ["experiments.tree_shape.settings.dynatree_threshold.D8_X3", "cannot read 'X3'"],
        ),
        ("experiments.ablation.also.optimal.branch", 0, ["experiments.ablation.also.optimal", "branch", "0"]),
        ("experiments.nucleus.repetition_penalty", -1, ["experiments.nucleus", "repetition_penalty", "-1"]),
        ("experiments.sampled.temperature", -1, ["experiments.sampled", "temperature", "-1"]),
        ("experiments.nucleus.top_p", 1.5, ["experiments.nucleus", "top_p", "1.5"]),
        ("experiments.nucleus.do_sample", False, ["experiments.nucleus", "temperature 0.7", "do_sample"]),
        ("benchmark.texts.penalised", {"heat": 1}, ["benchmark.texts.penalised", "heat"]),
        ("experiments.prompt_length.batches", [1, 2], ["methods.assisted", "one prompt at a time"]),
        (
            "timeline",
            ["linear", "assisted"],
            ["timeline: assisted records no phases; choose of autoregressive, linear"],
        ),
        ("limits.runs", 3, ["limits.runs", "generation runs are asked for, more than 3"]),
        ("sources.gutenberg.members", ..., ["sources.gutenberg", "members", "required"]),
        ("sources.tiny_books.pages", 3, ["sources.tiny_books", "pages", "not permitted"]),
        ("pairs.smollm2.target.kind", "magic", ["pairs.smollm2.target", "no 'magic'", "package, hub, local"]),
        ("pairs.smollm2.target.kind", ["hub"], ["pairs.smollm2.target"]),
        ("pairs.smollm2.drafter.layers", [], ["pairs.smollm2.drafter", "layers", "at least 1"]),
        ("pairs.tiny.target.branch", "main", ["pairs.tiny.target", "branch", "not permitted"]),
        ("pairs.tiny.drafter", RAW["pairs"]["tiny"]["features"], ["pairs.tiny.drafter.reads: [1, 2, 4]", "`features`"]),
        (
            "pairs.tiny.features",
            RAW["pairs"]["tiny"]["drafter"],
            ["pairs.tiny.features: kind distil that reads nothing"],
        ),
        (
            "pairs.tiny.features",
            {"kind": "hub", "repository": "a/b"},
            ["pairs.tiny.features: kind hub", "kind: distil"],
        ),
        ("pairs.tiny.features.reads", [2, 1], ["pairs.tiny.features", "reads: [2, 1]", "ascending"]),
        ("pairs.tiny.features.mix", {"pg20": 1}, ["pairs.tiny.features.mix: no data set 'pg20'", "wikipedia"]),
        ("methods.assisted.reads", True, ["methods.assisted.reads: True", "no drafter of ours"]),
        ("methods.dynatree.reads", "maybe", ["methods.dynatree.reads", "boolean"]),
        ("benchmark.also.transformers_torch.reads", True, ["benchmark.also.transformers_torch.reads", "leave it out"]),
        ("methods.prompt_lookup.reads", True, ["methods.prompt_lookup.reads: True", "leave it out"]),
    ],
)
def test_a_wrong_knob_is_named(place: str, value: Any, parts: list[str]) -> None:
    """Guards against knobs that are found out hours later, inside a job."""
    message = said(changed(place, value), knobs=True)
    assert "\n" not in message
    for part in parts:
        assert part in message


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6) | st.sampled_from([-1, 0, 1, 2, 10**30]),
    st.floats() | st.sampled_from([0.0, 1.0, 1.5]),
    st.text(max_size=12) | st.sampled_from(["", "None", "dynatree", "autoregressive", "tiny", "../up", "D8_B0", "x/y"]),
)
NAMES = st.text(max_size=8) | st.sampled_from(["autoregressive", "dynatree", "kind", "decoder", "K3"])
VALUES = st.just(...) | st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@settings(max_examples=300)
@given(place=st.sampled_from(places(RAW)), value=VALUES)
@example(place=("experiments", "tree_shape", "settings"), value={"\n": None})
@example(place=("experiments", "ablation", "also"), value={"\n": {"decoder": "no"}})
@example(place=("benchmark", "also"), value={"\n": {"decoder": "no"}})
@example(place=("benchmark", "grids"), value={"\n": {"\n": []}})
@example(place=("pairs",), value={"\n": {}})
@example(place=("scales", RAW["scale"], "experiments"), value={})
def test_any_change_is_taken_or_refused_in_one_line(place: tuple[Any, ...], value: Any) -> None:
    """Guards against a traceback for what nobody thought of: wrong types, odd names, lists for numbers, nothing."""
    refused = "in words"
    try:
        plugin_checks.check(params.check(changed(place, value)))
    except UserError as error:
        refused = str(error)
    assert refused and "\n" not in refused


def test_a_full_tree_without_bound_is_refused() -> None:
    """Guards against 3^8 nodes."""
    unbounded = {**RAW["methods"]["dynatree"], "branch": 3, "threshold": None, "budget": None}
    methods = {**RAW["methods"], "dynatree": unbounded}
    assert "leave 3^8 nodes; set one of them" in said({**RAW, "methods": methods}, knobs=True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("scale: [tiny", "params.yaml"),
        ("just a sentence", "expected keys and values, got str"),
        ("", "expected keys and values, got NoneType"),
        ("1: 2", "must be strings"),
        ("\x00", "special characters are not allowed"),
        ("seed: 0\nscale: tiny\nseed: 1\n", "line 3: key 'seed' stands there twice, first in line 1"),
        ("a: 1\nmethods:\n  linear: {depth: 1, depth: 2}\n", "line 3: key 'depth' stands there twice, first in line 3"),
        ("methods:\n  linear: {}\n  linear: {}\n", "line 3: key 'linear' stands there twice, first in line 2"),
    ],
)
def test_a_file_that_is_no_parameters_is_refused_in_one_line(tmp_path: Path, text: str, part: str) -> None:
    """Guards against a traceback of the YAML reader."""
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=part) as caught:
        params.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Guards against a traceback for a mistyped path."""
    with pytest.raises(UserError, match="No such file"):
        params.read(tmp_path / "params.yaml")


def test_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against reading the package's parameters in a copy of the project with others, and against needing one."""
    monkeypatch.chdir(tmp_path)
    assert params.read().scale == RAW["scale"]
    (tmp_path / "params.yaml").write_text("learning_rate: 0.1\n", encoding="utf-8")  # of another project
    assert params.read().scale == RAW["scale"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed("scale", "tiny")), encoding="utf-8")
    assert params.read().scale == "tiny"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("experiments.batch_size.batches", [1, 3], "3 does not divide"),
        ("methods.my method", {"decoder": "autoregressive"}, "'my method' is no name"),
        ("methods.machine", {"decoder": "autoregressive"}, "'machine' is no name"),
        ("sources.-x", {"kind": "text", "start": "body", "evaluation_share": 0.5}, "'-x' is no name"),
        ("benchmark.also.linear", {"decoder": "autoregressive"}, "'linear' is one of `methods`"),
        ("benchmark.also.a/b", {"decoder": "autoregressive"}, "benchmark.also: 'a/b' is no name"),
        ("experiments.chains.also", {"wide tree": {"like": "linear"}}, "chains.also: 'wide tree' is no name"),
    ],
)
def test_what_would_be_found_out_late_is_refused(key: str, value: Any, said: str) -> None:
    """Guards against batches left over, names that break a path or a command, and a method that hides another."""
    with pytest.raises(UserError, match=re.escape(said)):
        params.check(changed(key, value))


def test_what_a_scale_leaves_out_is_not_judged_by_its_sizes() -> None:
    """Guards against prompts that must suit the batches of an experiment that is not run."""
    odd = {**changed("experiments.batch_size.batches", [1, 3]), "figures": ["datasets"]}
    with pytest.raises(UserError, match="3 does not divide"):
        params.check(odd)
    odd["scales"] = {**RAW["scales"], "laptop": {**RAW["scales"]["laptop"], "leaves_out": ["batch_size"]}}
    assert "batch_size" not in params.check(odd).experiments


def test_a_model_is_not_built_over_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a user's own weights, which the job graph would remove before it reads them."""
    monkeypatch.chdir(tmp_path)
    local = {"kind": "local", "path": "models/mine"}
    pair = {"target": local, "drafter": {"kind": "local", "path": "elsewhere"}}
    with pytest.raises(UserError, match=r"pairs\.mine\.target\.path: models/mine is where the model is built"):
        plugin_checks.check(params.check(changed("pairs.mine", pair)))


def test_a_figure_without_its_experiment_is_refused() -> None:
    """Guards against a figure that finds no rows once everything is measured."""
    experiments = {name: values for name, values in RAW["experiments"].items() if name != "ablation"}
    with pytest.raises(UserError, match="figures: ablation shows experiment ablation, which is not there"):
        plugin_checks.check(params.check({**changed("figures", ["ablation"]), "experiments": experiments}))


def test_a_figure_of_an_experiment_that_compares_nothing_is_refused() -> None:
    """Guards against a figure of speedups that has none to draw, found out after all measuring."""
    alone = changed("experiments.prompt_length.methods", ["autoregressive"])
    with pytest.raises(UserError, match="figures: prompt_length shows experiment prompt_length, which compares"):
        plugin_checks.check(params.check(alone))
    plugin_checks.check(params.check({**alone, "figures": ["datasets"]}))


TEXTS = ["sampled", "nucleus", "penalised"]
OUT = "scales.laptop.leaves_out"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("timeline", [], "figures: timeline shows what `timeline` lists, which is no method"),
        ("memory", [], "figures: memory shows what `memory` lists, which is no method"),
        (OUT, [*TEXTS, "precision"], "figures: repetition shows a second kind of text, which no experiment"),
        (OUT, [*TEXTS, "repetition"], ""),
        (OUT, ["nucleus", "penalised"], ""),
    ],
)
def test_a_figure_of_what_is_not_asked_for_is_refused(place: str, value: Any, said: str) -> None:
    """Guards against a figure that fails last, after hours of measuring, and speaks of empty tables."""
    checked = params.check(changed(place, value))
    if not said:
        plugin_checks.check(checked)
        return
    with pytest.raises(UserError, match=r"leave the figure out, too, here or by scales\.laptop\.leaves_out") as caught:
        plugin_checks.check(checked)
    assert str(caught.value).startswith(said)


def test_a_figure_that_tells_no_formats_apart_is_of_one() -> None:
    """Guards a length's time from being that of the faster of two formats."""
    several = changed("experiments.length_scaling.dtypes", ["int8", "float32"])
    with pytest.raises(
        UserError, match=r"experiments\.length_scaling\.dtypes: .*; figure length_scaling does not tell"
    ):
        plugin_checks.check(params.check(several))
    plugin_checks.check(params.check(changed("experiments.length_scaling.dtypes", ["float32"])))


def test_a_figure_of_requests_alone_takes_no_batch() -> None:
    """Guards against a figure that refuses its rows once they are measured."""
    with pytest.raises(
        UserError, match=r"length_scaling\.batches: \[2\]; figure length_scaling is of requests decoded"
    ):
        plugin_checks.check(params.check(batched([2])))
    plugin_checks.check(params.check(batched([1])))


def batched(batches: list[int]) -> dict[str, Any]:
    raw = changed("experiments.length_scaling.batches", batches)
    raw["experiments"]["length_scaling"]["methods"] = ["autoregressive", "linear"]
    return raw


def test_a_scales_own_lengths_of_prompts_count_as_the_experiments() -> None:
    """Guards against two lengths of prompts that a figure takes for one, since a scale adds the second."""
    key = "experiments.length_scaling.prompt_tokens"
    several = changed(key, [50])
    plugin_checks.check(params.check(several))
    size = {**RAW["scales"]["laptop"]["experiments"]["length_scaling"], "prompt_tokens": [100]}
    several["scales"]["laptop"]["experiments"]["length_scaling"] = size
    with pytest.raises(UserError, match=rf"{key}: \[50, 100\]; figure length_scaling does not tell"):
        plugin_checks.check(params.check(several))


def test_passes_are_named_by_all_figures_that_show_them() -> None:
    """Guards the second of two figures of one pass, once the first is left out."""
    few = {**changed("timeline", []), "figures": ["datasets", "phase_breakdown"]}
    with pytest.raises(UserError, match="figures: phase_breakdown shows what `timeline` lists"):
        plugin_checks.check(params.check(few))
