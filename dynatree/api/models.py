"""Models for the decoder: loaded already, in a local folder, or on a hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynatree import files
from dynatree.config import QUANTISED
from dynatree.data import hub
from dynatree.engine import checkpoint, language_model
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError

Given = PreTrainedModel | str | Path

# Of `loading` what says where files come from, which is the tokenizer's, too.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class Loaded(NamedTuple):
    """A pair, and by role what tells each of its models apart; `folders` by role, where every model is one."""

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
    for one in given.values():
        if not isinstance(one, PreTrainedModel | str | Path):
            raise UserError(f"model: {one!r} is no model; give one of transformers, a folder or a hub name")
    _check_devices(given, dtype or "float32", device)
    folders = {role: Path(one) for role, one in given.items() if not isinstance(one, PreTrainedModel)}
    folders = {role: folder for role, folder in folders.items() if folder.is_dir()}
    if len(folders) == len(given):
        pair = checkpoint.load_pair(folders, dtype or "float32", device)
        pair.target.tokenizer = tokenizer or pair.target.tokenizer
        return Loaded(pair, _fingerprints(pair), folders)
    made: list[LanguageModel] = []
    draft: DraftModel | None = None
    try:
        for role, one in given.items():
            if role == "drafter" and role in folders:
                draft = checkpoint.load_drafter(folders[role], dtype or "float32", device)
                made.append(draft.language_model)
            else:
                made.append(_one(one, role, folders.get(role), dtype, device, loading))
        if drafter is not None and draft is None:
            draft = DraftModel(made[1])
    except BaseException:
        # Nobody gets the pair, and could put a model that was given back by it.
        for model_made in made:
            model_made.release()
        raise
    made[0].tokenizer = tokenizer or made[0].tokenizer
    pair = checkpoint.Pair(made[0], draft)
    return Loaded(pair, _fingerprints(pair), None)


def _one(
    given: Given, role: str, folder: Path | None, dtype: str | None, device: str, loading: Mapping[str, Any]
) -> LanguageModel:
    """The model of a pair that plays this `role`; `folder`: the target's, where it is one."""
    if folder is not None:
        return checkpoint.load(folder, dtype or "float32", device)
    plain, own = _plain(given, dtype, device, loading)
    theirs = isinstance(given, PreTrainedModel)
    return LanguageModel(
        plain,
        own,
        _name(given),
        packed=True,
        rounded=role == "drafter" and not theirs,
        restorable=theirs,
        format=checkpoint.graph_format(dtype or str(plain.dtype).removeprefix("torch.")),
    )


def _fingerprints(pair: checkpoint.Pair) -> dict[str, str]:
    """Of its models as they are loaded, wherever they came from; a draft vocabulary belongs to the drafter."""
    found = {"target": pair.target.fingerprint}
    if pair.drafter is not None:
        named, fusion = pair.drafter.vocabulary, pair.drafter.fusion
        parts = [pair.drafter.language_model.fingerprint, None if named is None else named.tolist()]
        parts += [] if fusion is None else [language_model.fingerprint(fusion)]
        parts += [] if pair.drafter.successors is None else [pair.drafter.successors.fingerprint]
        found["drafter"] = files.digest(parts)
    return found


def _check_devices(given: Mapping[str, Given], dtype: str, device: str) -> None:
    places = [
        one.device if isinstance(one, PreTrainedModel) else checkpoint.resolve(dtype, device)[1]
        for one in given.values()
    ]
    if len({(place.type, place.index or 0) for place in places}) > 1:
        raise UserError(f"drafter: it is on {places[1]}, the model on {places[0]}; move one of them")


def _plain(
    given: Given, dtype: str | None, device: str, loading: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """transformers' model and, of a hub, its tokenizer."""
    if isinstance(given, PreTrainedModel):
        own = str(given.dtype).removeprefix("torch.")
        if dtype in QUANTISED:
            checkpoint.resolve(str(dtype), given.device.type)
        elif dtype not in (None, own):
            raise UserError(f"dtype: {dtype!r}, but the model that was given is {own}; load it in that type")
        return given, None
    name = str(given)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        raise UserError(f"model: no folder {name!r}")
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
