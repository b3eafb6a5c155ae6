"""Tiny random models of every architecture that the tests cover."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import ModelOutput

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import CostTable, Curve
from dynatree.costs.step_rates import StepRates
from dynatree.distil.student import shrink
from dynatree.drafting import lookup
from dynatree.drafting.model import Draft, Proposals
from dynatree.engine.context import Context
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.fusion import Fusion
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.successors import Successors
from dynatree.generation.options import GenerationOptions
from dynatree.generation.request import Request
from dynatree.generation.trace import Clock
from dynatree.tree import TokenTree

VOCABULARY = 61
CONTEXT = 128

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_GATED = {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "llama": lambda: LlamaConfig(vocab_size=VOCABULARY, **_GATED),
    "gpt_neox": lambda: GPTNeoXConfig(vocab_size=VOCABULARY, intermediate_size=48, **_SHAPE),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **_ENDS),
    "qwen2": lambda: Qwen2Config(vocab_size=VOCABULARY, use_sliding_window=False, **_GATED),
    # Heads that together are wider than the model, each with a norm.
    "qwen3": lambda: Qwen3Config(vocab_size=VOCABULARY, head_dim=16, use_sliding_window=False, **_GATED),
    "mistral": lambda: MistralConfig(vocab_size=VOCABULARY, sliding_window=None, **_GATED),
}


def random_model(
    architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object
) -> PreTrainedModel:
    """A model with weights large enough that its argmax varies with context; `changes` go to its config."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval()


def language_model(
    architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object
) -> LanguageModel:
    """`random_model`, wrapped."""
    return LanguageModel(random_model(architecture, seed, dtype, **changes), name=f"{architecture}-{seed}")


def _unwrapped_copy(model: LanguageModel) -> PreTrainedModel:
    copy = deepcopy(model.model)
    copy._forward_pre_hooks.clear()
    return copy


def wanted(count: int, *eos: int, **more: Any) -> GenerationOptions:
    """Up to `count` tokens, ending behind one of `eos`."""
    return GenerationOptions(max_new_tokens=count, eos_token_id=frozenset(eos), **more)


def tabled(drafter: DraftModel, model: LanguageModel) -> DraftModel:
    """`drafter` with a table of what `model` puts after each token alone: bigrams of its own."""
    with torch.inference_mode():
        ids = torch.arange(model.vocabulary_size, device=model.device)
        logits = _unwrapped_copy(model)(ids[:, None]).logits[:, -1].float().cpu()
    best = torch.log_softmax(logits, -1).topk(min(8, model.vocabulary_size))
    drafter.successors = Successors(best.indices.numpy(), best.values.numpy(), context(model))
    return drafter


def context(model: LanguageModel, levels: int = 2, width: int = 5, rank: int = 3) -> Context:
    """A context for a table of `model`'s, with weights that add a little to each log-probability."""
    generator = torch.Generator().manual_seed(levels)
    h, w, v = width, model.model.config.hidden_size, model.vocabulary_size
    shapes = ((h, w), (h,), (h, w), (levels - 1, h, h), (levels - 1, h), (rank, h), (rank, w))
    weights = [torch.randn(shape, generator=generator).numpy() * 0.1 for shape in shapes]
    return Context(*weights, usual=np.full(v, -np.log(v), np.float32), unseen=np.full(v, -3.0, np.float32))


def same(model: LanguageModel) -> DraftModel:
    """A drafter with the target's own weights: right everywhere."""
    return tabled(DraftModel(LanguageModel(_unwrapped_copy(model), name="same")), model)


def wrong(model: LanguageModel) -> DraftModel:
    """A drafter whose likeliest tokens are the target's least likely: never right."""
    copy = _unwrapped_copy(model)

    def negate(module: object, inputs: object, output: ModelOutput) -> ModelOutput:
        output.logits = -output.logits
        return output

    copy.register_forward_hook(negate)
    return tabled(DraftModel(LanguageModel(copy, name="wrong")), model)


def unrelated(model: LanguageModel) -> DraftModel:
    """A drafter that knows nothing of the target."""
    return tabled(DraftModel(language_model("llama", seed=7, dtype=model.dtype)), model)


def related(model: LanguageModel, noise: float = 0.1, seed: int = 1) -> DraftModel:
    """A drafter that agrees with `model` often: its weights plus noise."""
    torch.manual_seed(seed)
    copy = _unwrapped_copy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(torch.randn_like(parameter) * noise * parameter.std())
    return tabled(DraftModel(LanguageModel(copy, name="related")), model)


def reading(model: LanguageModel, format: str | None = None, **config: Any) -> DraftModel:
    """A drafter that reads the target: its last layer, behind a random fusion; `config` holds more of its keys."""
    torch.manual_seed(5)
    copy = shrink(model.model, [model.model.config.num_hidden_layers - 1], 1.0).to(model.dtype)
    copy.config.update({"draft_reads": [1, 2], **config})
    drafter = LanguageModel(copy.eval(), name="reading", format=format)
    fused = fusion(len(copy.config.draft_reads), copy.config.hidden_size)
    return tabled(DraftModel(drafter, fusion=fused), model)


def fusion(reads: int, width: int) -> Fusion:
    """One with weights large enough that each part of a row matters."""
    made = Fusion(reads, width, 1e-5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return made.eval().requires_grad_(False)


def masked(model: LanguageModel, kept: int) -> DraftModel:
    """A drafter for which all but the `kept` likeliest tokens have probability zero."""
    copy = _unwrapped_copy(model)
    drafter = tabled(DraftModel(LanguageModel(copy, name="masked")), model)

    def mask(module: object, inputs: object, output: ModelOutput) -> ModelOutput:
        least = output.logits.topk(kept, dim=-1).values[..., -1:]
        output.logits = output.logits.masked_fill(output.logits < least, float("-inf"))
        return output

    copy.register_forward_hook(mask)
    return drafter


def with_twin_tokens() -> LanguageModel:
    """A model in which tokens 2k and 2k + 1 read differently but are predicted with the same logit."""
    model = random_model()
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[1::2] = head[0:-1:2]
    return LanguageModel(model, name="twins")


def calibration(
    node: float = 0.01, level: float = 0.05, drafting: bool = True, rates: Sequence[float] = (0.6, 0.2, 0.1)
) -> Calibration:
    """A machine on which a target step costs 1 s, each further node `node` and a draft level `level`.

    A level takes twice as long over 128 tokens; `rates`: how often each of its ranks is right.
    """
    counts = [1, 128]
    curve = Curve(contexts=[16, 64], tokens=counts, seconds=[[1 + node * (n - 1) for n in counts]] * 2)
    draft = Curve(contexts=[16], tokens=counts, seconds=[[level, 2 * level]]) if drafting else None
    ranks = [(0.5, 0.8), (-1.0, 0.5)]
    steps = StepRates(ranks=ranks, rates=[*rates], lookup=list(lookup.PRIOR), successors=ranks)
    return Calibration(CostTable(machine={}, models={}, verify=curve, draft=draft), steps)


DRAFTERS = {"related": related, "same": same, "wrong": wrong, "unrelated": unrelated}


def generated(
    model: LanguageModel, prompt: list[int], max_new_tokens: int, eos: int | list[int] | None = None
) -> list[int]:
    """transformers' own greedy output."""
    ids = torch.tensor([prompt])
    output = model.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def proposed(
    draft: Draft, model: DraftModel, tree: TokenTree, frontier: list[int], branch: int, text: list[int]
) -> Proposals:
    """What one level of drafting proposes."""
    ids = torch.tensor(text)
    (output,) = model.draft_batch([draft.draft_inputs(tree, frontier, ids)])
    return draft.proposals(output, tree, frontier, branch, ids)


def grown(tree: TokenTree, frontier: list[int], tokens: list[list[int]]) -> TokenTree:
    """`tree` with the `tokens` of each of `frontier` below it, all of them sure."""
    edges = [(node, token) for node, row in zip(frontier, tokens, strict=True) for token in row]
    return tree.extend([node for node, _ in edges], [token for _, token in edges], [0.0] * len(edges))


def request(prompt: list[int], count: int, **more: Any) -> Request:
    """A request for `count` tokens whose prefill gave the last token of `prompt`."""
    made = Request(prompt[:-1], wanted(count + 1, **more), KeyValueCache(), None, Clock())
    made.prefilled(prompt[-1])
    return made
