"""transformers' `generate` with our decoders: the same tokens in the same shape, or a refusal."""

from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import DynamicCache

from dynatree import DynaTree
from dynatree.errors import UserError
from tests import models
from tests.api.test_dyna_tree import After, Banned

PROMPTS = [[3, 1, 4, 1, 5], [7], [9, 8, 7, 6] * 3]


def batch(*prompts: list[int]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left with token 0."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "penalty of the model's own": {"repetition_penalty": 1.3, "logits_processor": [Banned()]},
    "suppressed": {"logits_processor": [SuppressTokensLogitsProcessor(list(range(20)))]},
    "ends": {"eos_token_id": [5, 11, 17, 23, 29, 31], "min_new_tokens": 4},
}


def called(model: PreTrainedModel, inputs: dict[str, torch.Tensor], options: dict[str, Any], **more: Any) -> Any:
    given = {"do_sample": False, "max_new_tokens": 18, "pad_token_id": 0, **options}
    if "logits_processor" in given:
        given["logits_processor"] = LogitsProcessorList(given["logits_processor"])
    return model.generate(**inputs, **given, **more)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_the_same_as_generate(architecture: str, options: str) -> None:
    """Guards the one argument that makes `generate` fast: alone, padded on the left, with prepared processors."""
    model, helper = models.random_model(architecture), models.random_model(architecture)
    for prompts in (PROMPTS[:1], PROMPTS):
        inputs = batch(*prompts)
        wanted = called(model, inputs, OPTIONS[options])
        for method in ("dynatree", "linear", "autoregressive"):
            with DynaTree(model, drafter=helper, method=method) as tree:
                found = called(model, inputs, OPTIONS[options], custom_generate=tree)
                whole = called(model, inputs, OPTIONS[options], custom_generate=tree, return_dict_in_generate=True)
            assert torch.equal(found, wanted), method
            assert torch.equal(whole.sequences, wanted) and whole.scores is None


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_decodes_in_the_tree_s_format(dtype: str) -> None:
    """Guards padded rows and their ends where a graph computes, of whose forwards `generate` knows nothing."""
    model, helper = (models.random_model(dtype=torch.float32) for _ in range(2))
    with DynaTree(model, drafter=helper, method="linear", dtype=dtype) as tree:
        plain = [tree.generate(prompt, 18).tokens for prompt in PROMPTS]
        ends = [plain[0][4], plain[1][9]]
        alone = [tree.generate(prompt, 18, eos_token_id=ends).tokens for prompt in PROMPTS]
        found = called(model, batch(*PROMPTS), {"eos_token_id": ends}, custom_generate=tree)
    longest = max(map(len, PROMPTS))
    assert [row[: len(own)] for row, own in zip(found[:, longest:].tolist(), alone, strict=True)] == alone
    assert len(alone[0]) < 18


def test_what_generate_adds_for_models_that_take_images_is_no_input() -> None:
    """Guards text to such a model, for which it prepares what is empty without an image."""
    model, inputs = models.random_model(), batch(PROMPTS[0])
    with DynaTree(model) as tree:
        wanted = called(model, inputs, {}, custom_generate=tree)
        config = GenerationConfig(max_new_tokens=18, max_length=len(PROMPTS[0]) + 18, eos_token_id=None, pad_token_id=0)
        given = {"generation_config": config, "attention_mask": inputs["attention_mask"], "mm_encoder_outputs": {}}
        assert torch.equal(tree(model, inputs["input_ids"], **given), wanted)
        with pytest.raises(UserError, match="mm_encoder_outputs: an input of the model"):
            tree(model, inputs["input_ids"], **given | {"mm_encoder_outputs": {"image": 1}})


def test_criteria_are_asked_token_by_token() -> None:
    """Guards against a stop that is only seen at the end of a commit."""
    model, helper = models.random_model(), models.random_model()
    for length in (6, 9, 14):
        criteria = {"stopping_criteria": StoppingCriteriaList([After(length)])}
        wanted = called(model, batch(PROMPTS[0]), criteria)
        with DynaTree(model, drafter=helper, method="linear") as tree:
            found = called(model, batch(PROMPTS[0]), criteria, custom_generate=tree)
        assert torch.equal(found, wanted) and found.shape[1] == length


@pytest.mark.parametrize("eos", [None, [60]])
def test_rows_that_a_criterion_stops_at_different_lengths(eos: list[int] | None) -> None:
    """Guards rows that stop before the last: padded where there is an end token, else decoded on, as by `generate`."""

    class Seen(StoppingCriteria):
        """Stop a row once it has a small token behind the prompt."""

        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
            return (input_ids[:, 12:] < 9).any(1)  # type: ignore[return-value]

    model = models.random_model()
    options = {"stopping_criteria": StoppingCriteriaList([Seen()]), "eos_token_id": eos, "max_new_tokens": 40}
    wanted = called(model, batch(*PROMPTS), options)
    ends = [(row[12:] < 9).nonzero().min().item() for row in wanted]
    assert len(set(ends)) > 1 and wanted.shape[1] < 52
    with DynaTree(model) as tree:
        assert torch.equal(called(model, batch(*PROMPTS), options, custom_generate=tree), wanted)


def test_a_processor_that_counts_new_tokens_counts_padding_as_generate_does() -> None:
    """Guards processors that are told how long the padded prompt is."""
    model = models.random_model()
    ends = called(model, batch(*PROMPTS), {})[:, 14].tolist()
    longest = max(map(len, PROMPTS))
    processors = [MinNewTokensLengthLogitsProcessor(longest, 6, ends)]
    options = {"eos_token_id": ends, "logits_processor": processors}
    wanted = called(model, batch(*PROMPTS), options)
    with DynaTree(model) as tree:
        assert torch.equal(called(model, batch(*PROMPTS), options, custom_generate=tree), wanted)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_beams": 2}, "num_beams: 2 cannot be honoured here; it may be 1"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores: True"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states: True"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha: 0.6 cannot be honoured here; it may be None"),
        ({"dola_layers": "high"}, "dola_layers: 'high' cannot be honoured here; it may be None"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: dict[str, Any], complaint: str) -> None:
    """Guards against options that are dropped in silence, as transformers drops a streamer."""
    model = models.random_model()
    with DynaTree(model) as tree, pytest.raises(UserError, match=complaint):
        called(model, batch(PROMPTS[0]), options, custom_generate=tree)


def test_criteria_of_the_caller_s_own_take_the_place_of_the_configuration_s() -> None:
    """Guards against an end and a length that are dropped, since `generate` makes criteria of these kinds itself."""
    model = models.random_model()
    plain = called(model, batch(PROMPTS[0]), {"max_new_tokens": 18})[0].tolist()
    own: list[list[Any]] = [[MaxLengthCriteria(12)], [EosTokenCriteria(plain[9])], [EosTokenCriteria([plain[8], 63])]]
    for criteria in own:
        options = {"stopping_criteria": StoppingCriteriaList(criteria), "eos_token_id": [63]}
        wanted = called(model, batch(PROMPTS[0]), options)
        with DynaTree(model) as tree:
            assert torch.equal(called(model, batch(PROMPTS[0]), options, custom_generate=tree), wanted)


def test_rows_are_padded_with_the_first_end_token_where_nothing_is_said() -> None:
    """Guards against an error once all is decoded: models without a padding token are many."""
    model = models.random_model()
    texts = [called(model, batch(prompt), {})[0].tolist() for prompt in PROMPTS]
    options = {"eos_token_id": [texts[1][5], texts[0][14]], "pad_token_id": None}
    wanted = called(model, batch(*PROMPTS), options)
    with DynaTree(model) as tree:
        assert torch.equal(called(model, batch(*PROMPTS), options, custom_generate=tree), wanted)


def test_positions_are_the_prompt_s_own() -> None:
    """Guards against positions that are dropped in silence."""
    model, inputs = models.random_model(), batch(*PROMPTS)
    wanted, own = called(model, inputs, {}), (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with DynaTree(model) as tree:
        assert torch.equal(called(model, {**inputs, "position_ids": own}, {}, custom_generate=tree), wanted)
        with pytest.raises(UserError, match="position_ids: positions are counted from a prompt's first token"):
            called(model, {**inputs, "position_ids": own + 3}, {}, custom_generate=tree)


def test_a_mask_of_truth_values_has_no_hole() -> None:
    """Guards against tokens that a hole moves in front of the prompt."""
    model, inputs = models.random_model(), batch(PROMPTS[0])
    mask = inputs["attention_mask"].bool()
    mask[0, 2] = False
    with DynaTree(model) as tree, pytest.raises(UserError, match="attention_mask: prompts are padded on the right"):
        called(model, {**inputs, "attention_mask": mask}, {}, custom_generate=tree)


def test_a_penalty_behind_another_processor_passes_padding_over() -> None:
    """Guards against lengths of rows that are taken for lengths of nodes."""
    model, helper = models.random_model(), models.random_model()
    options = {"sequence_bias": {(5,): -2.0}, "repetition_penalty": 1.4}
    for prompts in (PROMPTS[:1], [PROMPTS[0], PROMPTS[0][::-1]]):
        wanted = called(model, batch(*prompts), options)
        with DynaTree(model, drafter=helper, method="fixed_tree") as tree:
            assert torch.equal(called(model, batch(*prompts), options, custom_generate=tree), wanted)
            with pytest.raises(UserError, match="repetition_penalty behind another processor"):
                called(model, batch(*PROMPTS), options, custom_generate=tree)


def test_a_processor_that_tells_prompts_by_their_place_is_for_one() -> None:
    """Guards against the node of a tree that is taken for the prompt of its number."""
    model, helper = models.random_model(), models.random_model()
    every: list[dict[str, Any]] = [
        {"prefix_allowed_tokens_fn": lambda row, ids: [[*range(30)]][row]},
        {"encoder_repetition_penalty": 1.4},
        {"encoder_no_repeat_ngram_size": 2},
    ]
    for options in every:
        wanted = called(model, batch(PROMPTS[0]), options)
        with DynaTree(model, drafter=helper, method="fixed_tree") as tree:
            assert torch.equal(called(model, batch(PROMPTS[0]), options, custom_generate=tree), wanted)
            with pytest.raises(UserError, match=f"{next(iter(options))}: it tells prompts by their place"):
                called(model, batch(*PROMPTS[:2]), options, custom_generate=tree)
            # There a copy has a place of its own.
            several = {**options, "do_sample": True, "num_return_sequences": 4}
            with pytest.raises(UserError, match=r"here are 4; give one, and inside .* num_return_sequences=1"):
                called(model, batch(PROMPTS[0]), several, custom_generate=tree)


def test_a_processor_that_remembers_steps_is_refused() -> None:
    """Guards against a state that rejected branches have changed."""
    refused = pytest.raises(UserError, match="UnbatchedClassifierFreeGuidanceLogitsProcessor: it keeps what it saw")
    with DynaTree(model := models.random_model()) as tree, refused:
        called(model, batch(PROMPTS[0]), {"guidance_scale": 1.5}, custom_generate=tree)


SAMPLED: list[dict[str, Any]] = [
    {"top_k": 0},
    {"temperature": 0.7},
    {"top_k": 7, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    {"top_k": 0, "temperature": 0.8, "typical_p": 0.9},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_it_samples_inside_generate(options: dict[str, Any]) -> None:
    """Guards warpers that are dropped or applied twice, padding that moves the noise, and keys of several sequences."""
    model, helper = models.random_model(), models.random_model()
    given = {"do_sample": True, **options}
    with DynaTree(model, method="autoregressive") as plain:
        usual = {"top_k": 50, **{k: v for k, v in options.items() if k != "typical_p"}}
        alone = [called(model, batch(p), given, custom_generate=plain, seed=5)[0, len(p) :].tolist() for p in PROMPTS]
        if "typical_p" not in options:
            direct = plain.generate(PROMPTS[0], 18, do_sample=True, seed=5, eos_token_id=None, **usual)
            assert direct.tokens == alone[0]
    for method in ("dynatree", "linear"):
        with DynaTree(model, drafter=helper, method=method) as tree:
            found = called(model, batch(*PROMPTS), given, custom_generate=tree, seed=5)
            assert [row[-18:].tolist() for row in found] == alone
            several = called(
                model, batch(PROMPTS[0]), {**given, "num_return_sequences": 3}, custom_generate=tree, seed=5
            )
            assert several[0, -18:].tolist() == alone[0] and len({tuple(row) for row in several.tolist()}) == 3


def test_without_a_seed_torchs_generator_decides() -> None:
    """Guards `torch.manual_seed` and `set_seed`, by which users of transformers repeat what was drawn."""
    model = models.random_model()
    with DynaTree(model) as tree:

        def drawn() -> list[int]:
            found: list[int] = called(model, batch(PROMPTS[0]), {"do_sample": True}, custom_generate=tree)[0].tolist()
            return found

        torch.manual_seed(1)
        first, second = drawn(), drawn()
        torch.manual_seed(1)
        assert drawn() == first != second
        alike = called(model, batch(PROMPTS[0], PROMPTS[0]), {"do_sample": True}, custom_generate=tree)
        assert alike[0].tolist() != alike[1].tolist()
        with pytest.raises(UserError, match="generate: temperature 1e-05"):
            called(model, batch(PROMPTS[0]), {"do_sample": True, "temperature": 1e-5}, custom_generate=tree)
        with pytest.raises(UserError, match="seed: 5 is for sampling"):
            called(model, batch(PROMPTS[0]), {}, custom_generate=tree, seed=5)


def test_inputs_besides_the_text_are_refused() -> None:
    """Guards token types, images and the like, without which the text would be another."""
    model = models.random_model("gpt2")
    inputs = batch(PROMPTS[0])
    with DynaTree(model) as tree, pytest.raises(UserError, match="token_type_ids: an input of the model"):
        called(model, inputs | {"token_type_ids": inputs["input_ids"]}, {}, custom_generate=tree)


def test_several_sequences_of_greedy_decoding_are_refused() -> None:
    """Guards the one that transformers refuses before it asks us."""
    model = models.random_model()
    with DynaTree(model) as tree, pytest.raises(ValueError, match="num_return_sequences"):
        called(model, batch(PROMPTS[0]), {"num_return_sequences": 2}, custom_generate=tree)


def test_other_models_filled_caches_and_padding_on_the_right_are_refused() -> None:
    """Guards against text that is decoded after something else than was given."""
    model, other = models.random_model(), models.random_model(seed=1)
    with DynaTree(model) as tree:
        with pytest.raises(UserError, match="this DynaTree was made for another model"):
            called(other, batch(PROMPTS[0]), {}, custom_generate=tree)
        cache = DynamicCache(config=model.config)
        model(torch.tensor([[3, 1]]), cache=cache)
        with pytest.raises(UserError, match="cache: it holds keys and values already"):
            called(model, batch(PROMPTS[0]), {}, custom_generate=tree, cache=cache)
        inputs = {key: value.flip(1) for key, value in batch(*PROMPTS).items()}
        with pytest.raises(UserError, match="padded on the right"):
            called(model, inputs, {}, custom_generate=tree)
