"""Calibrated step probabilities, cost curves, and how both are measured."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynatree import decoding
from dynatree.costs.calibration import VERSION, Calibration, read_rates
from dynatree.costs.cost_table import BatchCosts, CostTable, Curve
from dynatree.costs.step_rates import OnlineCorrection, SampledRates, StepRates
from dynatree.drafting.lookup import PRIOR
from dynatree.drafting.model import Draft
from dynatree.drafting.successors import Follower
from dynatree.engine.backend import Feed
from dynatree.engine.checkpoint import Pair
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.generation.sampling import Sampler
from dynatree.measuring import calibrate, calibration_methods, forward_times
from dynatree.settings import PLUGGED
from dynatree.tree import ROOT, TokenTree
from tests import models
from tests.conftest import Build, Drafts


def test_a_curve_goes_through_its_points_and_on_beyond() -> None:
    """Guards against an off-by-one between tokens and nodes, and against a curve that ends."""
    curve = Curve(contexts=[100, 1000], tokens=[1, 2, 4], seconds=[[1, 2, 3], [10, 20, 30]])
    assert curve.at(0, 6).tolist() == [0, 1, 2, 2.5, 3, 3.75, 4.5]
    assert curve.at(10**6, 2).tolist() == [0, 10, 20]
    assert [curve.nearest(context) for context in (0, 549, 551)] == [0, 0, 1]


def test_a_curve_that_falls_at_its_end_does_not_fall_on() -> None:
    """Guards against forwards that cost less than nothing: a batch is measured up to a few tokens a row."""
    curve = Curve(contexts=[100], tokens=[1, 2, 4], seconds=[[0.040, 0.048, 0.040]])
    assert curve.at(0, 64)[4:].tolist() == pytest.approx([0.01 * n for n in range(4, 65)])
    steep = Curve(contexts=[100], tokens=[1, 2], seconds=[[1, 3]])
    assert steep.at(0, 4).tolist() == [0, 1, 3, 5, 7]


@pytest.mark.parametrize(
    "wrong", [{"seconds": [[1, 2]]}, {"tokens": [2, 1, 4]}, {"seconds": [[1, 2, -3]]}, {"contexts": []}]
)
def test_a_curve_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    """Guards against a hand-made or damaged table."""
    with pytest.raises(ValueError, match=next(iter(wrong)) + "|seconds"):
        Curve(**{"contexts": [100], "tokens": [1, 2, 4], "seconds": [[1, 2, 3]], **wrong})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_calibrated_siblings_are_probabilities(stated: list[float]) -> None:
    """Guards against rows above 1, which would let v rise along a path."""
    found = StepRates(ranks=[(2.0, 1.0), (1.0, 0.5)], rates=[0.5], lookup=list(PRIOR)).calibrated(stated)
    assert all(0 < p <= 1 for p in found) and sum(found) <= 1 + 1e-5


def test_fitted_curves_give_back_the_rates_they_were_fitted_on() -> None:
    """Guards against a sign or a rank mixed up: rank 0 is over-confident, rank 1 never right, rank 2 always.

    Of few tokens the drafter's own word is kept.
    """
    torch.manual_seed(0)
    stated = torch.rand(4000, 3).clamp(0.02, 0.98).log()
    hits = torch.rand(4000) < stated[:, 0].exp() / 2
    everything = torch.stack([hits, torch.zeros(4000, dtype=bool), torch.ones(4000, dtype=bool)], 1)
    calibration = StepRates(ranks=calibrate.fit_ranks(stated, everything), rates=[0.5], lookup=list(PRIOR))
    first = [calibration.calibrated([p])[0] for p in stated[:, 0].exp().tolist()]
    assert sum(first) / len(first) == pytest.approx(float(hits.float().mean()), abs=0.02)
    (_, never, always) = calibration.ranks
    at_half = torch.sigmoid(torch.tensor([never[0], always[0]]))
    assert float(at_half[0]) < 0.05 and float(at_half[1]) > 0.95 and never[1] >= 0 and always[1] >= 0
    for intercept, slope in calibrate.fit_ranks(stated[:20], everything[:20]):
        assert abs(intercept) < 0.5 and abs(slope - 1) < 0.3


def test_teacher_forcing_a_perfect_drafter_hits_at_rank_one(target: Build, drafter: Drafts) -> None:
    """Guards against labels shifted by one position."""
    prompt, output = [3, 1, 4], models.generated(target(), [3, 1, 4], 20)
    stated, hits = calibrate.teacher_forced(drafter("same"), prompt, output)
    assert stated.shape == hits.shape == (20, calibrate.RATED)
    assert hits[:, 0].all() and not hits[:, 1:].any()
    assert not calibrate.teacher_forced(drafter("wrong"), prompt, output)[1].any()


def test_a_drafter_is_measured_as_it_sees_the_text(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against rates of a drafter that sees all where it is asked behind the last few tokens alone."""
    helper, window, prompt = drafter("related"), 6, [3, 1, 4, 1, 5]
    output = models.generated(target(), prompt, 20)
    monkeypatch.setattr(helper, "window", window)
    stated, hits = calibrate.teacher_forced(helper, prompt, output)
    asked, text = Draft(helper, *helper.new_caches(1)), [*prompt]
    for place, token in enumerate(output):
        asked.begin_round(text)
        tokens, steps = models.proposed(asked, helper, TokenTree.root(text[-1]), [0], calibrate.RATED, text)
        asked.accept(ROOT)
        assert torch.allclose(torch.tensor(steps[0]), stated[place], atol=1e-6)
        assert [one == token for one in tokens[0]] == hits[place].tolist()
        text.append(token)
    table = forward_times.costs(target(), helper, [4, 16, 64], 1, {"cpu": "x"}, {})
    assert table.draft is not None and table.draft.contexts == [4, window]
    assert table.verify.contexts == [4, 16, 64]


@pytest.mark.parametrize("window", [None, 6])
def test_a_drafter_that_reads_is_measured_behind_true_states(target: Build, window: int | None) -> None:
    """Guards rates of another state than decoding has, and costs without what joins the states."""
    model = target()
    helper = models.reading(model, **({"draft_window": window} if window else {}))
    output = models.generated(model, [3], 20)
    of_all = model.states(torch.tensor([3, *output]), helper.reads)
    # Behind a text of one token there is nothing to draft from.
    stated, hits = calibrate.teacher_forced(helper, [3], output, target=model)
    assert len(stated) == len(hits) == 19
    asked, text = Draft(helper, *helper.new_caches(1)), [3, output[0]]
    asked.begin(of_all[:1])
    for place, token in enumerate(output[1:]):
        asked.begin_round(text)
        tokens, steps = models.proposed(asked, helper, TokenTree.root(text[-1]), [0], calibrate.RATED, text)
        asked.accept(ROOT, of_all[place + 1 : place + 2])
        assert torch.allclose(torch.tensor(steps[0]), stated[place], atol=1e-5)
        assert [one == token for one in tokens[0]] == hits[place].tolist()
        text.append(token)
    table = forward_times.costs(model, helper, [4, 16], 1, {"cpu": "x"}, {})
    assert table.draft is not None and table.handling > 0
    followed = [([3, 1, 4], output)]
    texts = dict.fromkeys(calibrate.KINDS, followed)
    steps_of = calibrate.step_rates(texts, helper, model)
    assert len(steps_of.ranks) == forward_times.RANKS
    assert calibrate.while_decoding(model, helper, [[3, 1, 4]], 12, table) >= 0


def test_measured_tables_cover_every_context_that_fits(target: Build, drafter: Drafts) -> None:
    """Guards against a table that a policy cannot read, for models with a short context too."""
    for architecture in ("llama", "gpt2"):
        table = forward_times.costs(target(architecture), drafter("related"), [16, 64, 4096], 1, {"cpu": "x"}, {})
        assert table.verify.tokens == list(forward_times.VERIFIED) and table.draft is not None
        assert table.verify.contexts[:2] == [16, 64]
        assert (table.verify.at(64, 127)[1:] > 0).all()
    looping = [([3, 1, 4], [3, 1, 4] * 9)]
    texts = dict.fromkeys(calibrate.KINDS, looping)
    texts[calibrate.PENALISED] = [([3, 1, 4], [3, 2, 5, 3, 6, 7, 3, 8, 9])]
    steps = calibrate.step_rates(texts, drafter("same"))
    assert len(steps.ranks) == forward_times.RANKS and len(steps.lookup) == len(PRIOR)
    # Where text does not loop, a match of one token is right less often.
    assert steps.lookup_processed[0] < PRIOR[0] <= steps.lookup[0]
    # Of each kind by itself.
    assert len(steps.rates_processed) == len(steps.rates) and steps.rates_processed != steps.rates
    assert [len(one.rates) for one in steps.sampled] == [len(steps.rates)] * 2


def test_of_two_measurements_the_smaller_counts(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a slow minute in which wide forwards seem to be for nothing."""
    asked: list[int] = []

    def medians(model: object, steps: Sequence[object], repeats: int) -> list[float]:
        # Target and drafter, twice; one size of each is slow in its first measurement, all others later.
        asked.append(repeats)
        again = len([one for one in asked if one == 3]) in (3, 4, 7, 8)
        return [3.0 if again == (place > 0) else 1.0 for place in range(len(steps))]

    monkeypatch.setattr(forward_times, "_medians", medians)
    table = forward_times.costs(target(), drafter("related"), [16], 5, {}, {})
    (pair,) = forward_times.batch_costs(target(), drafter("related"), [16], 5, [1, 2], table)
    assert asked == [forward_times.LEAST_HANDLED, *[3] * 8]
    for curve in (table.verify, pair.verify):
        assert curve.seconds[0][:4] == [1.0] * 4
    assert table.draft is not None and len({*table.draft.seconds[0][:4]}) == 1


def test_the_online_correction_follows_what_happens() -> None:
    """Guards against proposals that go on claiming what this request does not bear out."""
    stated = [0.5, 0.2]
    never, always, untouched = OnlineCorrection(), OnlineCorrection(), OnlineCorrection()
    for _ in range(40):
        never.observe(0.7, False)
        always.observe(0.7, True)
    assert untouched.corrected(stated) == pytest.approx(stated)
    assert never.corrected(stated)[0] < 0.15
    assert always.corrected(stated)[0] > 0.6
    assert sum(always.corrected(stated)) <= 1 + 1e-5
    assert len(always.corrected([0.3, 0.2, 0.1])) == 3


def test_batches_are_measured_beside_single_requests(target: Build, drafter: Drafts) -> None:
    """Guards against a table without the batches asked for, or one that takes as long as all sizes of all batches."""
    table = forward_times.costs(target(), drafter("related"), [16, 32, 64], 1, {}, {})
    found = forward_times.batch_costs(target(), drafter("related"), [16, 32, 64, 100], 1, [1, 4, 2], table)
    assert [batch.rows for batch in found] == [2, 4]
    for batch in found:
        assert batch.draft is not None and batch.verify.contexts == batch.draft.contexts == [32]
        assert max(batch.verify.tokens) * batch.rows <= max(forward_times.VERIFIED)
    table = table.model_copy(update={"batches": found})
    assert CostTable(**table.model_dump(mode="json")) == table


def test_a_level_of_a_batch_takes_its_rows_own_work_and_the_surcharge(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against batches that go on by costs of forwards in a tight loop."""
    monkeypatch.setattr(forward_times, "_medians", lambda model, steps, repeats: [1.0] * len(steps))
    costs = models.calibration().costs.model_copy(update={"handling": 0.25, "surcharge": 0.5})
    found = forward_times.batch_costs(target(), drafter("related"), [16], 1, [2, 4], costs)
    assert [batch.draft.seconds[0][0] for batch in found if batch.draft] == [1 + 2 * 0.25 + 0.5, 1 + 4 * 0.25 + 0.5]
    assert [batch.verify.seconds[0][0] for batch in found] == [1.0, 1.0]


def test_batches_are_a_file_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against single requests that depend on how many are decoded together, and batches of other models."""
    alone = models.calibration()
    alone.write(tmp_path)
    assert not (tmp_path / "batches.json").exists() and Calibration.read(tmp_path, {}, {}).costs == alone.costs
    before = (tmp_path / "costs.json").read_bytes()
    two = BatchCosts(rows=2, verify=alone.costs.verify, draft=alone.costs.draft)
    both = alone._replace(costs=alone.costs.model_copy(update={"batches": [two]}))
    both.write_batches(tmp_path)
    assert (tmp_path / "costs.json").read_bytes() == before
    assert Calibration.read(tmp_path, {}, {}).costs == both.costs and not caplog.text
    other = both._replace(costs=both.costs.model_copy(update={"models": {"target": "of another day"}}))
    other.write_batches(tmp_path)
    assert Calibration.read(tmp_path, {}, {}).costs == alone.costs and "batches.json is of other models" in caplog.text
    there = both._replace(costs=both.costs.model_copy(update={"machine": {**both.costs.machine, "dtype": "int4"}}))
    there.write_batches(tmp_path)
    assert Calibration.read(tmp_path, {}, {}).costs == alone.costs and "is of another dtype, and not" in caplog.text


def test_a_row_pays_its_share_of_the_batch() -> None:
    """Guards the policy's costs in a batch: the forward's seconds over its rows, linear between measured batches."""
    costs = models.calibration().costs
    four = BatchCosts(rows=4, verify=Curve(contexts=[16], tokens=[1, 8], seconds=[[2, 4]]), draft=costs.draft)
    table = costs.model_copy(update={"batches": [four]})
    assert table.shared(4).verify.at(16, 8)[[1, 8]].tolist() == [0.5, 1]
    assert table.shared(4).draft.seconds == [[value / 4 for value in costs.draft.seconds[0]]]
    three = table.shared(3)
    assert three.verify.contexts == [16]
    for tokens, four_take in ((1, 2), (8, 4)):
        alone = float(costs.verify.at(16, tokens)[tokens])
        assert float(three.verify.at(16, tokens)[tokens]) == pytest.approx((alone + 2 * (four_take - alone) / 3) / 3)
    assert table.shared(5).verify == table.shared(4).verify
    assert Calibration(table, models.calibration().step_rates).shared(1).costs == table


def test_between_two_batches_every_measured_point_counts() -> None:
    """Guards against points of one curve alone, and against contexts of the smaller batch."""
    few = Curve(contexts=[16, 64], tokens=[1, 3, 9], seconds=[[1, 2, 8], [2, 4, 16]])
    many = Curve(contexts=[60], tokens=[1, 5], seconds=[[4, 8]])
    middle = few.between(many, 0.25)
    assert (middle.contexts, middle.tokens) == ([60], [1, 3, 5, 9])
    assert middle.seconds == [[0.75 * a + 0.25 * b for a, b in ((2, 4), (4, 6), (8, 8), (16, 8 + 4 * 8 / 5))]]


def test_a_table_prices_drafts_of_all_batches_or_of_none() -> None:
    """Guards against a hand-made table that fails in the middle of a batch."""
    costs = models.calibration().costs.model_dump(mode="json")
    batch = {"rows": 2, "verify": costs["verify"]}
    with pytest.raises(ValidationError, match="draft costs of 2 rows or of one row, but not of both"):
        CostTable(**{**costs, "batches": [batch]})


def test_a_table_without_batches_is_still_read() -> None:
    """Guards tables that were measured for one request at a time."""
    table = models.calibration().costs.model_dump(mode="json")
    del table["batches"]
    assert CostTable(**table).batches == []


def test_levels_cost_what_they_take_while_decoding(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against costs of forwards in a tight loop, which leave out what a level takes besides them."""
    proposals = Draft.proposals

    def slow(*arguments: Any) -> Any:
        time.sleep(0.005)
        return proposals(*arguments)

    monkeypatch.setattr(Draft, "proposals", slow)
    # A table that is too low.
    costs = models.calibration(level=1e-4).costs
    beyond = calibrate.while_decoding(target(), drafter("related"), [[3, 1, 4, 1]], 12, costs)
    assert "0 rounds" not in capsys.readouterr().err
    paid = costs.drafting_plus(beyond)
    assert beyond > 0.004 and paid.draft.at(16, 1)[1] == pytest.approx(costs.draft.at(16, 1)[1] + beyond)
    assert paid.verify == costs.verify
    # Where every child is accepted, two tokens are fed, for which this table has enough.
    enough = costs.draft.model_copy(update={"tokens": [1, 2, 128], "seconds": [[1e-4, 1.0, 1.0]]})
    costs = costs.model_copy(update={"draft": enough})
    assert calibrate.while_decoding(target(), drafter("same"), [[3, 1, 4, 1]], 12, costs) == 0


@pytest.mark.parametrize("prompts", [[[3, 1, 4, 1]], [[3, 1, 4, 1], [2, 7], [1, 5, 9]]])
def test_what_looking_takes_is_measured_between_forwards(
    target: Build, drafter: Drafts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> None:
    """Guards requests that look for nodes where that takes longer than they save."""
    looked_up = Follower._looked_up

    def slow(*arguments: Any) -> Any:
        time.sleep(0.005)
        return looked_up(*arguments)

    monkeypatch.setattr(Follower, "_looked_up", slow)
    known = models.calibration(level=9.0)
    found = calibrate.in_decoding(target(), drafter("related"), prompts, known)
    first, further = found.looking
    assert 0.005 < first < 0.1 and 0.004 < further < 0.1
    # What a round takes that does not look is no part of it.
    assert 0 < found.beside < 0.005
    # Nor is what a drawn token takes, of which there is one in each round.
    assert max(found.drawing) < 0.004 and found.drawn().beside == found.beside + found.drawing[0]
    known._replace(costs=found).write(tmp_path)
    assert Calibration.read(tmp_path, {}, {}).costs == found
    assert found.looked(3) == pytest.approx(first + 2 * further)
    assert known.costs.looked(3) == 0


def test_what_drawn_tokens_take_is_told_apart(target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards drawn text by what text takes that is not drawn, where no noise is asked for."""
    token, words = Sampler.token, Sampler.words

    def slowly(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            time.sleep(seconds)
            return method(*arguments)

        return slow

    monkeypatch.setattr(Sampler, "token", slowly(token, 0.004))
    monkeypatch.setattr(Sampler, "words", slowly(words, 0.01))
    known, prompts = models.calibration(level=9.0), [[3, 1, 4, 1], [2, 7]]
    found = calibrate.in_decoding(target(), drafter("related"), prompts, known)
    beside, looking = found.drawing
    assert 0.003 < beside < 0.05 and 0.009 < looking < 0.1
    assert found.beside < 0.003
    drawn = found.drawn()
    assert drawn.looked(2) == pytest.approx(found.looked(2) + 2 * looking) and drawn.drawn() == drawn
    shared = known._replace(costs=found).shared(3, drawn=True).costs
    assert (shared.beside, shared.looked(3)) == (drawn.beside, drawn.looked(3))


def test_forwards_cost_what_they_take_while_decoding(target: Build, drafter: Drafts) -> None:
    """Guards trees by forwards that were timed among others than decoding has."""
    known = models.calibration(level=9.0)
    model, prompts = target(), [[3, 1, 4, 1], [2, 7], [1, 5, 9]]
    # By the table each takes a second, of which no more than half can be taken back.
    costs = calibrate.in_decoding(model, drafter("related"), prompts, known).verify
    assert [costs.at(16, 3)[n] for n in (1, 2)] == pytest.approx([0.5, 0.5], abs=0.01)
    # A table that is too low.
    low = Curve(contexts=[16], tokens=[1, 2, 128], seconds=[[1e-9, 1e-9, 1e-9]])
    low_costs = known.costs.model_copy(update={"verify": low})
    one, more, most = calibrate.in_decoding(
        model, drafter("related"), prompts, known._replace(costs=low_costs)
    ).verify.seconds[0]
    assert one > 1e-5 and most == more


def test_a_slow_moment_is_outvoted(target: Build, drafter: Drafts) -> None:
    """Guards trees by the state that a machine was in for the two seconds in which decoding was watched."""
    known, model, helper, prompts = models.calibration(level=9.0), target(), drafter("related"), [[3, 1, 4, 1], [2, 7]]
    usual = calibrate._watched(model, helper, prompts, known)
    assert all(any(texts) for texts in usual), "rounds of each kind were seen"
    slow = calibrate._Watched(
        *([[one._replace(forward=9.0, beside=5.0) for one in rounds] for rounds in texts] for texts in usual)
    )

    def one_token(*earlier: calibrate._Watched) -> tuple[float, float]:
        costs = calibrate.in_decoding(model, helper, prompts, known, earlier)
        return float(costs.verify.at(16, 1)[1]), costs.beside

    assert one_token(slow, slow) == pytest.approx((9.0, 5.0))
    # By the table each takes a second, of which no more than half can be taken back.
    forward, beside = one_token(slow, usual)
    assert forward == pytest.approx(0.5) and beside < 0.1
    # So is a text, however many of its rounds were slow.
    usual.at_rest.append([one._replace(forward=9.0, beside=5.0) for one in usual.at_rest[0] * 50])
    forward, beside = one_token(usual)
    assert forward == pytest.approx(0.5) and beside < 0.1


def test_small_forwards_are_timed_oftener(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the price of a node against a spell of some milliseconds: most rounds have few."""
    seen, timed = list[int](), forward_times._timed

    def timing(model: LanguageModel, steps: Sequence[Any]) -> float:
        seen.append(steps[0].args[-1])
        return timed(model, steps)

    monkeypatch.setattr(forward_times, "_timed", timing)
    forward_times.costs(target(), None, [16], 2, {}, {})
    larger = next(n for n in forward_times.VERIFIED if n > forward_times._SMALL)
    often, seldom = seen.count(forward_times._SMALL), seen.count(larger)
    assert seldom and often == forward_times._OFTEN * seldom


def test_decoding_is_watched_at_three_moments(target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against moments that are one."""
    order: list[str] = []
    for module, name in ((calibrate, "_watched"), (forward_times, "_curves"), (calibrate, "while_decoding")):
        made = getattr(module, name)

        def told(*given: Any, of: Any = made, by: str = name, **more: Any) -> Any:
            order.append(by)
            return of(*given, **more)

        monkeypatch.setattr(module, name, told)
    pair = Pair(target(), drafter("related"))
    found = calibrate.loaded(pair, {}, [[3, 1, 4, 1]], 12, [16], 1, {}, lambda _: None)
    assert order == ["_curves", "_watched", "_curves", "_watched", "while_decoding", "_watched"]
    assert found.costs.beside > 0


def test_calibration_decodes_by_what_it_is_measured_anew_for(
    target: Build, drafter: Drafts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a plug-in of which calibration follows and whose change nobody notices."""
    built, build = list[str](), decoding.build

    def told(target: Any, drafter: Any, decoder: str, knobs: dict[str, Any], *given: Any) -> Any:
        built.extend([f"decoding.{decoder}", *(f"{folder}.{knobs[knob]}" for knob, folder in PLUGGED.items())])
        return build(target, drafter, decoder, knobs, *given)

    monkeypatch.setattr(decoding, "build", told)
    calibrate.loaded(Pair(target(), drafter("related")), {}, [[3, 1, 4, 1]], 12, [16], 1, {}, lambda _: None)
    assert {*built} == {"decoding.speculative", *calibration_methods.PLUGS}


def test_a_curve_beyond_itself_stays_one() -> None:
    """Guards seconds of no forward, and those over one token that are taken for those over more."""
    curve = Curve(contexts=[16, 64], tokens=[1, 2, 4], seconds=[[4.0, 5.0, 6.0], [8.0, 9.0, 10.0]])
    assert curve.beyond(-1, 0.5).seconds == [[3.0, 5.5, 6.5], [7.0, 9.5, 10.5]]
    assert curve.beyond(-7, -1).seconds == [[2.0, 4.0, 5.0], [4.0, 8.0, 9.0]]


def test_a_switch_is_what_a_forward_takes_behind_others(target: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a price of switching where there is none, and one that is lost among forwards of a kind."""
    model, before = target(), [1]
    forward_batch = LanguageModel.forward_batch

    def slow(self: LanguageModel, feeds: Sequence[Feed], *arguments: Any, **further: Any) -> Any:
        count = len(feeds[0].tokens)
        if before[0] == 1 < count:
            time.sleep(0.02)
        before[0] = count
        return forward_batch(self, feeds, *arguments, **further)

    monkeypatch.setattr(LanguageModel, "forward_batch", slow)
    assert 0.01 < forward_times.costs(model, None, [16], 1, {}, {}, tell=lambda _: None).switch < 0.1
    monkeypatch.setattr(LanguageModel, "forward_batch", forward_batch)
    assert forward_times.costs(model, None, [16], 3, {}, {}, tell=lambda _: None).switch < 0.005


def test_a_slower_level_is_kept_for_batches() -> None:
    """Guards against a surcharge that the costs of batches, measured later, would lack."""
    costs = models.calibration().costs
    slower = costs.drafting_plus(0.5)
    assert slower.draft == costs.draft.plus(0.5) and slower.surcharge == costs.surcharge + 0.5
    assert costs.model_copy(update={"draft": None}).drafting_plus(0.5).draft is None


def test_costs_are_measured_up_to_the_drafters_last_position(target: Build) -> None:
    """Guards against a median of nothing where a context leaves no room for repeats."""
    small = DraftModel(models.language_model("gpt2", seed=3, n_positions=20))
    table = forward_times.costs(target(), small, [18], 1, {}, {})
    assert table.draft is not None and table.draft.contexts == [18]


def test_states_are_made_where_the_drafter_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a calibration on a GPU that feeds a drafter that reads from the CPU."""
    there, found = torch.device("meta"), []

    class Begun(Exception):
        """All that is wanted is known."""

    def begun(_: Any, states: torch.Tensor) -> None:
        found.append(states.device)
        raise Begun

    reading = models.reading(models.language_model())
    monkeypatch.setattr(DraftModel, "device", there)
    monkeypatch.setattr(DraftModel, "draft_batch", lambda _, feeds: found.extend(feed.states.device for feed in feeds))
    monkeypatch.setattr(Draft, "begin", begun)
    forward_times._level(reading, reading.new_caches(2), 3)
    with pytest.raises(Begun):
        forward_times._handling(reading, 4, 1)
    assert found == [there] * 3


def test_rates_are_those_of_the_kind_of_text() -> None:
    """Guards expectations of greedy text where text is drawn or processed, and a field that one kind lacks."""
    drawn = [
        SampledRates(temperature=t, ranks=[(t, 1.0)], rates=[t / 4], lookup=[t / 8], successors=[(t, 2.0)])
        for t in (0.7, 1.0)
    ]
    greedy = StepRates(ranks=[(0.0, 1.0)], rates=[0.6], lookup=[0.5], rates_processed=[0.4], lookup_processed=[0.3])
    every = greedy.model_copy(update={"sampled": drawn})
    for rates in (greedy, every):
        assert rates.at(0) is rates
        assert (rates.at(0, True).rates, rates.at(0, True).lookup) == ([0.4], [0.3])
    bare = greedy.model_copy(update={"rates_processed": [], "lookup_processed": []})
    assert (bare.at(0, True).rates, bare.at(0, True).lookup) == ([0.6], [0.5])
    assert greedy.at(1.0).rates == [0.6] and greedy.at(1.0, True).rates == [0.4]
    for processed in (False, True):
        found = every.at(0.75, processed)
        assert (found.ranks, found.rates, found.lookup) == ([(0.7, 1.0)], [0.7 / 4], [0.7 / 8])
        assert found.successors == [(0.7, 2.0)]
    with pytest.raises(ValueError, match=r"1\.5 is no probability"):
        StepRates(ranks=[(0.0, 1.0)], rates=[0.6], lookup=[], rates_processed=[1.5])


def test_an_old_calibration_is_refused(tmp_path: Path) -> None:
    """Guards against numbers that meant something else when they were written."""
    models.calibration().write(tmp_path)
    kept = Calibration.read(tmp_path, {}, {})
    assert kept.step_rates.version == VERSION
    path = tmp_path / "steps.json"
    path.write_text(path.read_text().replace(f'"version": {VERSION}', '"version": 1'))
    with pytest.raises(UserError, match=f"of version 1, this is {VERSION}; measure it again"):
        Calibration.read(tmp_path, {}, {})


def test_rates_of_another_format_are_taken_as_they_are(
    target: Build, drafter: Drafts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against continuations that are written anew for every format, and rates lost on the way."""
    models.calibration().write(tmp_path)
    known = read_rates(tmp_path)
    monkeypatch.setattr(calibrate, "step_rates", None)
    found = calibrate.loaded(
        Pair(target(), drafter("related")), {}, [[3, 1, 4]], 8, [16], 1, {}, tell=lambda _: None, rates=known
    )
    assert found.step_rates is known and known.ranks == models.calibration().step_rates.ranks
    assert found.costs.draft is not None and min(found.costs.looking) > 0
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(UserError, match="measure it again"):
        read_rates(tmp_path)


def test_a_context_near_the_limit_stands_for_shorter_ones() -> None:
    """Guards against the price by the token of sizes that had no room behind it, but have behind what it stands for."""
    small = models.language_model("gpt2", seed=3, n_positions=160)
    verification = partial(forward_times._verification, small, ())
    curve = forward_times._curve(small, 1, forward_times.VERIFIED, [4, 130], 1, verification)
    behind, near = (dict(zip(curve.tokens, row, strict=True)) for row in curve.seconds)
    assert near[128] / near[24] == pytest.approx(behind[128] / behind[24])
