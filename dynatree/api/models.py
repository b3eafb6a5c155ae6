"""Models for the decoder: loaded already, in a local folder, or on a hub."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynatree.data import hub
from dynatree.engine import checkpoint
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError

Given = PreTrainedModel | str | Path

# Of `loading` what says where files come from, which is the tokenizer's, too.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Values of each weight that tell a loaded model apart: all of them would take a second a gigabyte.
_SAMPLED = 64


class Loaded(NamedTuple):
    """A pair, and by role what tells each of its models apart: taken before anything of a model that is given changes.

    `folders` by role, where every model is one.
    """

    pair: checkpoint.Pair
    fingerprints: dict[str, str]
    folders: dict[str, Path] | None


def load(
    model: Given,
    tokenizer: PreTrainedTokenizerBase | None,
    drafter: Given | None,
    dtype: str | None,
    device: str,
    loading: Mapping[str, Any],
) -> Loaded:
    """The pair of `model` and `drafter`; a drafter's folder may name its draft vocabulary.

    Raises UserError for a model that a tree cannot be verified with, and for models on two devices.
    """
    given = {"target": model} if drafter is None else {"target": model, "drafter": drafter}
    _check_devices(given, dtype or "float32", device)
    folders = {role: Path(one) for role, one in given.items() if not isinstance(one, PreTrainedModel)}
    folders = {role: folder for role, folder in folders.items() if folder.is_dir()}
    fingerprints = {role: checkpoint.fingerprint(folder) for role, folder in folders.items()}
    if len(folders) == len(given):
        pair = checkpoint.load_pair(folders, dtype or "float32", device)
        pair.target.tokenizer = tokenizer or pair.target.tokenizer
        return Loaded(pair, fingerprints, folders)
    made: dict[str, LanguageModel | DraftModel] = {}
    for role, one in given.items():
        if role in folders:
            load_one = checkpoint.load if role == "target" else checkpoint.load_drafter
            made[role] = load_one(folders[role], dtype or "float32", device)
            continue
        plain, own = _plain(one, dtype, device, loading)
        fingerprints[role] = _fingerprint(plain)
        theirs = isinstance(one, PreTrainedModel)
        rounded = role == "drafter" and not theirs
        made[role] = LanguageModel(plain, own, _name(one), packed=True, rounded=rounded, restorable=theirs)
    target, draft = made["target"], made.get("drafter")
    assert isinstance(target, LanguageModel)
    target.tokenizer = tokenizer or target.tokenizer
    draft = DraftModel(draft) if isinstance(draft, LanguageModel) else draft
    return Loaded(checkpoint.Pair(target, draft), fingerprints, None)


def _check_devices(given: Mapping[str, Given], dtype: str, device: str) -> None:
    places = [
        one.device if isinstance(one, PreTrainedModel) else checkpoint.resolve(dtype, device)[1]
        for one in given.values()
    ]
    if len({(place.type, place.index or 0) for place in places}) > 1:
        raise UserError(f"drafter: it is on {places[1]}, the model on {places[0]}; move one of them")


def sampled(count: int) -> list[int]:
    """Which of so many values tell them apart: from the first to the last, evenly."""
    few = min(_SAMPLED, count)
    # In whole numbers: a float32 of torch's linspace is beyond the end of a large embedding.
    return [place * (count - 1) // max(1, few - 1) for place in range(few)]


def _fingerprint(model: PreTrainedModel) -> str:
    """Of a loaded model: its configuration and some of its weights."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[torch.tensor(sampled(len(flat)), device=flat.device)]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(json.dumps(some.double().tolist()).encode())
    return digest.hexdigest()


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
        where = {key: value for key, value in loading.items() if key in _WHERE}
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
    return model, found


def _name(given: Given) -> str:
    if isinstance(given, PreTrainedModel):
        return Path(str(given.config.name_or_path)).name or type(given).__name__
    return Path(given).name
