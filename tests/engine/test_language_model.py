"""Which models, pairs and prompts are refused, with a message that names the trouble; and how models are loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from dynatree import plugins
from dynatree.engine.checkpoint import fingerprint, load, read, resolve
from dynatree.engine.compatibility import pair_up
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.files import DRAFT_VOCABULARY
from tests import models
from tests.conftest import Build, Drafts

_SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1}
_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "sliding window": (
        lambda: MistralForCausalLM(MistralConfig(**_SMALL, num_key_value_heads=2, sliding_window=4)),
        "sliding",
    ),
    "some layers slide": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**_SMALL, num_key_value_heads=2, head_dim=8)),
        "sliding",
    ),
    "layers that slide in a model that takes images": (
        lambda: Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=Gemma3TextConfig(**_SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4),
                vision_config=SiglipVisionConfig(
                    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
                ),
            )
        ),
        "sliding",
    ),
    "local layers": (
        lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=32,
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                window_size=8,
                attention_types=[[["global", "local"], 1]],
                **_ENDS,
            )
        ),
        "local layers with a window of 8",
    ),
    "encoder-decoder": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "encoder-decoder",
    ),
    "recurrent": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)),
        "recurrent|position_ids|linear|mamba",
    ),
    "ALiBi": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)),
        "position_ids",
    ),
    "ALiBi without head bias": (
        lambda: MptForCausalLM(MptConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2, **_ENDS)),
        "position_ids",
    ),
    "ALiBi behind position_ids": (
        lambda: FalconForCausalLM(
            FalconConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True, **_ENDS)
        ),
        "ALiBi",
    ),
    "rotation by length": (
        lambda: LlamaForCausalLM(LlamaConfig(**_SMALL, rope_parameters=_ROPE)),
        "dynamic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_verify_a_tree_are_refused(case: str) -> None:
    """Guards against wrong output from models whose attention ignores tree mask or positions."""
    build, complaint = REFUSED[case]
    with pytest.raises(UserError, match=complaint) as caught:
        LanguageModel(build(), name="candidate")
    assert "candidate" in str(caught.value)


def test_a_window_of_nothing_is_refused() -> None:
    """Guards against a drafter that would see no text at all."""
    model = LanguageModel(LlamaForCausalLM(LlamaConfig(**_SMALL, draft_window=1)), name="candidate")
    with pytest.raises(UserError, match=r"candidate: draft_window .* is 1"):
        DraftModel(model)


@pytest.mark.parametrize("architecture", models.CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_supported_architectures_pass_the_probe(architecture: str, dtype: torch.dtype) -> None:
    """Guards against a tolerance that refuses good models in some precision."""
    model = models.language_model(architecture, dtype=dtype)
    assert (model.dtype, model.vocabulary_size, model.context_limit) == (dtype, models.VOCABULARY, models.CONTEXT)
    assert model.forwards == 0


def test_weights_that_are_not_finite_are_refused() -> None:
    """Guards against NaN, which compares false with every tolerance."""
    model = models.random_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="finite"):
        LanguageModel(model)


def test_one_object_is_not_both_target_and_drafter(target: Build) -> None:
    """Guards against forwards of both roles in one counter."""
    with pytest.raises(UserError, match="one object"):
        pair_up(target(), DraftModel(LanguageModel(target().model)))


def test_vocabularies_of_different_size_are_refused_by_every_pair_decoder(target: Build) -> None:
    """Guards against drafted ids that mean other tokens, in any decoder that takes a drafter."""
    other = DraftModel(models.language_model(vocab_size=models.VOCABULARY + 3))
    for name, knobs in [("speculative", {"policy": "chain", "draft_tokens": 2}), ("assisted", {})]:
        with pytest.raises(UserError, match=f"{models.VOCABULARY + 3}.*{models.VOCABULARY}"):
            plugins.load("decoding", name).Decoder(target(), other, **knobs)


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])))


def test_tokenizers_that_differ_are_refused_naming_a_token() -> None:
    """Guards against equal sizes with other meanings, including tokens added later."""
    ours, theirs, added = (tokenizer("a", "b", "c"), tokenizer("a", "c", "b"), tokenizer("a", "b", "c"))
    added.add_tokens(["<extra>"])
    target, drafter = models.language_model(), models.language_model()
    pair = target, DraftModel(drafter)
    target.tokenizer = ours
    for other, named in [(theirs, "'b' is 2 and 1"), (added, "'<extra>' is 3 and None")]:
        drafter.tokenizer = other
        with pytest.raises(UserError, match=named):
            pair_up(*pair)
    drafter.tokenizer = tokenizer("a", "b", "c")
    pair_up(*pair)


@pytest.mark.parametrize(
    ("prompt", "count", "complaint"),
    [
        ([], 5, "empty"),
        ([1], 0, "max_new_tokens\n.*greater than or equal to 1.*input_value=0"),
        ([1, models.VOCABULARY], 5, f"id {models.VOCABULARY} is outside"),
        ([-1], 5, "id -1 is outside"),
        ([1] * models.CONTEXT, 1, "context of 128; shorten the prompt$"),
        ([1] * 100, 29, "at most 28"),
    ],
)
def test_prompts_that_cannot_be_decoded_are_refused_before_any_forward(
    target: Build, drafter: Drafts, prompt: list[int], count: int, complaint: str
) -> None:
    """Guards against index errors deep in a model, in every decoder."""
    forwards = target().forwards
    for name, knobs in [
        ("autoregressive", {}),
        ("transformers", {}),
        ("prompt_lookup", {"draft_tokens": 1}),
        ("assisted", {}),
        ("speculative", {"policy": "chain", "draft_tokens": 2}),
    ]:
        decoder = plugins.load("decoding", name).Decoder(target(), drafter("same"), **knobs)
        with pytest.raises(ValueError, match=complaint) as caught:
            decoder.decode(prompt, models.wanted(count))
        assert isinstance(caught.value, UserError) == (count > 0)
    assert target().forwards == forwards


def test_a_saved_model_loads_with_its_tokenizer(tmp_path: Path) -> None:
    """Guards the way from a folder to logits."""
    model = models.random_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).tokenizer is None
    tokenizer("a", "b").save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="float64")
    assert loaded.tokenizer is not None
    assert (loaded.name, loaded.dtype) == (tmp_path.name, torch.float64)
    expected = LanguageModel(model.double()).forward(torch.arange(4), KeyValueCache())
    assert torch.allclose(loaded.forward(torch.arange(4), KeyValueCache()), expected)


def test_tied_weights_load_as_tied(tmp_path: Path) -> None:
    """Guards against a head reported as missing because the checkpoint stores it once."""
    models.random_model("gpt2").save_pretrained(tmp_path)
    model = read(tmp_path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_incomplete_folders_are_refused_naming_what_is_missing(tmp_path: Path) -> None:
    """Guards against tracebacks from loading, and against weights invented at random."""
    with pytest.raises(UserError, match="no folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)
    models.random_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load(tmp_path)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    model = models.random_model()
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="lacks weights"):
        load(tmp_path)


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    """Guards against a traceback for a folder of something else."""
    (tmp_path / "model.safetensors").touch()
    for text in ("{", "{}", '{"model_type": "no such model"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            load(tmp_path)


def test_unknown_precision_and_device_list_the_choices() -> None:
    """Guards against a silent default."""
    with pytest.raises(UserError, match="float32, float64"):
        resolve("fp32", "cpu")
    with pytest.raises(UserError, match="cpu, cuda"):
        resolve("float32", "gpu")


@pytest.mark.parametrize(("given", "expected"), [(None, set()), (3, {3}), ([3, 5], {3, 5})])
def test_end_tokens_are_those_of_the_generation_config(given: int | list[int] | None, expected: set[int]) -> None:
    """Guards against models with several end tokens."""
    model = models.language_model()
    model.model.generation_config.eos_token_id = given
    assert model.eos_ids == expected


def test_score_is_forward_without_a_cache(target: Build) -> None:
    """Guards the audit: it must judge by the logits that decoding sees."""
    tokens = torch.arange(9)
    assert torch.allclose(target().score(tokens, 4), target().forward(tokens, KeyValueCache())[-4:], atol=1e-10)


def test_another_draft_vocabulary_is_another_drafter(tmp_path: Path) -> None:
    """Guards against the costs of one drafter being taken for those of a copy that drafts over fewer tokens."""
    models.random_model().save_pretrained(tmp_path)
    found = [fingerprint(tmp_path)]
    for ids in ("[1, 2, 3]", "[1, 2]"):
        (tmp_path / DRAFT_VOCABULARY).write_text(ids)
        found.append(fingerprint(tmp_path))
    assert len(set(found)) == 3
