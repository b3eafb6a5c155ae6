"""Models for the decoder: loaded already, in a local folder, or on a hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynatree.data import hub
from dynatree.engine import checkpoint
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError

Given = PreTrainedModel | str | Path


def target(
    given: Given,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str | None,
    device: str,
    loading: Mapping[str, Any],
) -> LanguageModel:
    """The target of `given`. Raises UserError for a model that a tree cannot be verified with."""
    if isinstance(given, str | Path) and Path(given).is_dir():
        loaded = checkpoint.load(given, dtype or "float32", device)
        loaded.tokenizer = tokenizer or loaded.tokenizer
        return loaded
    model, own = _plain(given, dtype, device, loading)
    return LanguageModel(model, tokenizer or own, _name(given), packed=True, restorable=True)


def drafter(
    given: Given, tokenizer: PreTrainedTokenizerBase | None, dtype: str | None, device: str, loading: Mapping[str, Any]
) -> DraftModel:
    """The drafter of `given`; that of a folder drafts over the folder's draft vocabulary. Raises UserError."""
    if isinstance(given, str | Path) and Path(given).is_dir():
        return checkpoint.load_drafter(given, dtype or "float32", device)
    model, own = _plain(given, dtype, device, loading)
    restorable = isinstance(given, PreTrainedModel)
    return DraftModel(
        LanguageModel(model, own, _name(given), packed=True, rounded=not restorable, restorable=restorable)
    )


def folders(given: Mapping[str, Given | None]) -> dict[str, Path] | None:
    """The folders by role, where every model is one."""
    named = {role: model for role, model in given.items() if model is not None}
    if not all(isinstance(model, str | Path) and Path(model).is_dir() for model in named.values()):
        return None
    return {role: Path(model) for role, model in named.items() if isinstance(model, str | Path)}


def _plain(
    given: Given, dtype: str | None, device: str, loading: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """transformers' model and, of a hub, its tokenizer."""
    if isinstance(given, PreTrainedModel):
        own = str(given.dtype).removeprefix("torch.")
        if dtype not in (None, own):
            raise UserError(f"dtype: {dtype!r}, but the model that was given is {own}; load it in that type")
        return given, None
    name = str(given)
    torch_dtype, place = checkpoint.resolve(dtype or "float32", device)
    with hub.access(f"model {name!r}", "a folder with the model"):
        keys = {"use_safetensors": True, "trust_remote_code": False, **loading}
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch_dtype, **keys)
        model = model.to(place)
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=loading.get("revision"), trust_remote_code=False
        )
    return model, found


def _name(given: Given) -> str:
    if isinstance(given, PreTrainedModel):
        return Path(str(given.config.name_or_path)).name or type(given).__name__
    return Path(given).name


def check_devices(target: torch.device, drafter: torch.device) -> None:
    """Raise UserError unless both compute on one device."""
    if target != drafter:
        raise UserError(f"drafter: it is on {drafter}, the model on {target}; move one of them")
