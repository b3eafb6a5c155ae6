"""Cached labels are the target's own probabilities, of text and of what it writes; shards can be made again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dynatree.data import model_sources
from dynatree.distil import dialogue, labels
from dynatree.distil.text import collect
from dynatree.errors import UserError
from tests import models
from tests.distil.worlds import DATASETS, LENGTH, recipe

TOP = 5


@pytest.fixture(params=["llama", "gpt_neox"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    return models.random_model(request.param, dtype=torch.float32)


def probabilities(target: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return target(tokens.long(), use_cache=False).logits.softmax(-1)


def test_labels_are_the_likeliest_tokens_of_every_position(target: PreTrainedModel) -> None:
    """Guards against labels that are off by one position, or normalised over the kept tokens only."""
    tokens = torch.arange(3 * LENGTH).view(3, LENGTH) % models.VOCABULARY
    shard = labels.score(target, tokens, TOP)
    best = probabilities(target, tokens).topk(TOP, dim=-1)
    assert torch.equal(shard["ids"].long(), best.indices)
    torch.testing.assert_close(shard["probabilities"].float(), best.values, atol=2e-3, rtol=0)


def test_a_continuation_has_the_labels_of_its_own_tokens(target: PreTrainedModel) -> None:
    """Guards against a cache or a row order that gives a row another row's labels; greedy rows are the argmax."""
    prompts = torch.arange(4 * 6).view(4, 6) % models.VOCABULARY
    temperatures = torch.tensor([0.0, 1.0, 0.0, 0.7])
    shard = labels.continuations(target, prompts, 5, temperatures, TOP, torch.Generator().manual_seed(0))
    assert shard["tokens"].shape == (4, 6 + 5 - 1)
    assert torch.equal(shard["tokens"][:, :6].long(), prompts)
    scored = labels.score(target, shard["tokens"], TOP)
    assert torch.equal(shard["ids"], scored["ids"])
    for row in (0, 2):
        assert shard["tokens"][row, 6:].tolist() == models.generated(
            models.LanguageModel(target), prompts[row].tolist(), 4
        )


def test_sampling_follows_the_temperature_and_never_ends(target: PreTrainedModel) -> None:
    """Guards against sampling from other probabilities, and against text behind the end of a sequence."""
    prompts = torch.full((2000, 2), 3)
    wanted = probabilities(target, prompts[:1])[0, -1]
    end = int(wanted.argmax())
    for temperature, forbidden in ((1.0, None), (0.5, None), (1.0, end)):
        target.generation_config.eos_token_id = forbidden
        warm = torch.full((2000,), temperature)
        shard = labels.continuations(target, prompts, 2, warm, len(wanted), torch.Generator().manual_seed(1))
        drawn = torch.bincount(shard["tokens"][:, 2], minlength=len(wanted)) / 2000
        expected = wanted ** (1 / temperature)
        if forbidden is not None:
            expected[forbidden] = 0
        assert (drawn - expected / expected.sum()).abs().max() < 0.05
        assert forbidden is None or drawn[forbidden] == 0


def test_a_penalty_changes_the_text_and_not_its_labels(target: PreTrainedModel) -> None:
    """Guards against another penalty than decoding's (transformers' own), and against one that reaches the labels."""
    prompts = torch.arange(2 * 6).view(2, 6) % models.VOCABULARY
    penalties, cold = torch.tensor([1.0, 1.3]), torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    shard = labels.continuations(target, prompts, 9, cold, TOP, generator, penalties=penalties)
    for row, penalty in enumerate(penalties.tolist()):
        options = {"do_sample": False, "max_new_tokens": 8, "repetition_penalty": penalty}
        wanted = target.generate(prompts[row : row + 1], attention_mask=torch.ones(1, 6), **options)
        assert shard["tokens"][row].tolist() == wanted[0].tolist()
    assert torch.equal(shard["ids"], labels.score(target, shard["tokens"], TOP)["ids"])


def test_states_are_the_target_s_at_each_position(target: PreTrainedModel) -> None:
    """Guards against states of another position, row or order of layers, with the cache and without."""
    prompts = torch.arange(3 * 6).view(3, 6) % models.VOCABULARY
    shard = labels.continuations(target, prompts, 5, torch.ones(3), TOP, torch.Generator().manual_seed(0), (2, 1))
    tokens = shard["tokens"]
    with torch.inference_mode():
        hidden = target.base_model(tokens.long(), output_hidden_states=True).hidden_states
        norm = target.base_model.norm if hasattr(target.base_model, "norm") else target.base_model.final_layer_norm
        for states in (shard["states"], labels.score(target, tokens, TOP, (2, 1))["states"]):
            assert states.shape == (*tokens.shape, 2 * target.config.hidden_size)
            last, first = states.chunk(2, dim=-1)
            torch.testing.assert_close(first, hidden[1], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(norm(last), hidden[2], atol=2e-5, rtol=1e-4)


def test_shards_are_made_once_and_depend_on_their_number_alone(
    target: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against labels that change, or are made again, after a stop."""
    wanted, text = recipe().labels, collect(DATASETS, {}, 0.3, 0)
    paths = labels.write_shards(target, text, wanted, LENGTH, tmp_path / "labels", seed=3)
    assert sum(labels.measure(path)[0] for path in paths) >= wanted.tokens
    lengths = {tuple(load_file(path)["tokens"].shape)[1] for path in paths}
    assert LENGTH in lengths  # of text
    assert len(lengths) > 1  # of continuations
    kept, before = paths[0].stat().st_mtime_ns, load_file(paths[-1])
    paths[-1].unlink()
    capsys.readouterr()
    assert labels.write_shards(target, text, wanted, LENGTH, tmp_path / "labels", seed=3) == paths
    assert paths[0].stat().st_mtime_ns == kept
    assert len(capsys.readouterr().err.splitlines()) == 1
    after = load_file(paths[-1])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list((tmp_path / "labels").glob(".*"))
    brief = wanted.model_copy(update={"seconds": 1e-9})
    assert labels.write_shards(target, text, brief, LENGTH, tmp_path / "labels", seed=3) == paths[:1]


def test_dialogues_go_from_turn_to_turn_as_the_template_says(target: PreTrainedModel) -> None:
    """Guards against template tokens that the target was left to draw, a question at the answer's temperature, and
    labels of other tokens than those that were written."""
    # Any token ends a turn that is likely enough to come by chance.
    end = int(probabilities(target, torch.full((1, 2), 3))[0, -1].argmax())
    chosen = dialogue.Template((3, 3), (end, 41, 42), (end, 43))
    turns = dialogue.Turns(chosen, torch.zeros(40))
    prompts = torch.tensor(chosen.opening).expand(40, -1)
    shard = labels.continuations(target, prompts, 30, turns, TOP, torch.Generator().manual_seed(0))
    assert torch.equal(shard["ids"], labels.score(target, shard["tokens"], TOP)["ids"])
    answered = 0
    for row in shard["tokens"].tolist():
        asking, place = True, 2
        while place < len(row):
            turn = chosen.to_answer if asking else chosen.to_question
            if row[place] == end:
                written = row[place : place + len(turn)]
                assert written == list(turn[: len(written)])
                place, asking = place + len(turn), not asking
                answered += 1
            elif not asking:  # cold: an answer is the argmax
                best = probabilities(target, torch.tensor([row[:place]]))[0, -1].argmax()
                assert row[place] == best
                place += 1
            else:
                place += 1
    assert answered > 20
    # Questions differ, though answers are greedy.
    assert len({tuple(row[2:8]) for row in shard["tokens"].tolist()}) > 10


def test_shares_of_text_and_dialogues_are_met(target: PreTrainedModel) -> None:
    """Guards against dialogues that take the place of text, or never come."""
    wanted = recipe().labels.model_copy(update={"text_share": 0.4, "dialogue_share": 0.3, "rows": 1, "new_tokens": 1})
    chosen = dialogue.Template((1, 2, 3), (4,), (4,))
    text = collect(DATASETS, {}, 0.3, 0)
    shards = [labels.make_shard(target, text, wanted, LENGTH, n, 0, dialogue=chosen)["tokens"][0] for n in range(40)]
    dialogues = [s for s in shards if s[:3].tolist() == [1, 2, 3]]
    assert len(dialogues) == 12
    assert len([s for s in shards if len(s) == LENGTH]) == 16


def test_the_tokens_between_turns_are_the_template_s() -> None:
    """Guards against a template whose turns are cut at the wrong places, and asks for one where there is none."""
    tokenizer = model_sources.byte_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        dialogue.template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    found = dialogue.template(tokenizer)
    assert [tokenizer.decode(part) for part in (found.opening, found.to_answer, found.to_question)] == [
        "<user>",
        "|<assistant>",
        "|<user>",
    ]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="no common end"):
        dialogue.template(tokenizer)
