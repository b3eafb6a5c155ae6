"""Tiny random models of every architecture that the tests cover."""

from copy import deepcopy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from dynatree.model import LanguageModel

VOCABULARY = 61
CONTEXT = 128

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_GATED = {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(vocab_size=VOCABULARY, **_GATED),
    "gpt_neox": lambda: GPTNeoXConfig(vocab_size=VOCABULARY, intermediate_size=48, **_SHAPE),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
    "qwen2": lambda: Qwen2Config(vocab_size=VOCABULARY, use_sliding_window=False, **_GATED),
    "mistral": lambda: MistralConfig(vocab_size=VOCABULARY, sliding_window=None, **_GATED),
}


def random_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model with weights large enough that its argmax varies with context."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype).eval()


def language_model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """`random_model`, wrapped."""
    return LanguageModel(random_model(architecture, seed, dtype), name=f"{architecture}-{seed}")


def related(model: LanguageModel, noise: float, seed: int = 1) -> LanguageModel:
    """A drafter that agrees with `model` often: its weights plus noise."""
    torch.manual_seed(seed)
    copy = deepcopy(model.model)
    copy._forward_pre_hooks.clear()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(torch.randn_like(parameter) * noise * parameter.std())
    return LanguageModel(copy, name="related")


def generated(model: LanguageModel, prompt: list[int], max_new_tokens: int, eos: int | None = None) -> list[int]:
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
