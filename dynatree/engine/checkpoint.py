"""Models from local folders in transformers' layout: safetensors alone, no remote code; which model is which."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dynatree import files
from dynatree.config import QUANTISED
from dynatree.engine import fusion, successors
from dynatree.engine.compatibility import DTYPES, GRAPH_FORMATS
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.engine.tokenizer import load_tokenizer, same_tokenizer
from dynatree.errors import UserError, first_line, readable
from dynatree.files import DRAFT_VOCABULARY

DEVICES = ("cpu", "cuda")


def resolve(dtype: str, device: str) -> tuple[torch.dtype, torch.device]:
    """Torch's dtype and device of these names. Raises UserError with the choices."""
    if dtype not in (*DTYPES, *QUANTISED):
        raise UserError(f"dtype: no {dtype!r}; choose one of {', '.join((*DTYPES, *QUANTISED))}")
    if device not in DEVICES:
        raise UserError(f"device: no {device!r}; choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda' was asked for, but this torch sees no GPU; choose cpu")
    if dtype in QUANTISED and device != "cpu":
        raise UserError(f"dtype: {dtype} is for cpu, not for {device}; choose one of {', '.join(DTYPES)}")
    # Codes are made of the weights in full.
    return DTYPES.get(dtype, torch.float32), torch.device(device)


def graph_format(dtype: str | None) -> str | None:
    """`dtype` where it is one that a graph computes in."""
    return dtype if dtype in GRAPH_FORMATS else None


class Pair(NamedTuple):
    """A target and, if there is one, its drafter."""

    target: LanguageModel
    drafter: DraftModel | None = None


def load(folder: str | Path, dtype: str = "float32", device: str = "cpu", name: str | None = None) -> LanguageModel:
    """The model in a local `folder` in transformers' layout (safetensors only, no remote code).

    A folder without tokenizer files gives a model that reads token ids alone. On a CPU a graph computes it, or float32
    weights are packed.
    Raises UserError if there is no such folder, no config.json or no safetensors in it, or the architecture is not
    supported.
    """
    folder = Path(folder)
    model, tokenizer = _placed(folder, dtype, device), load_tokenizer(folder)
    return LanguageModel(model, tokenizer, name or folder.name, packed=True, format=graph_format(dtype))


def load_drafter(
    folder: str | Path, dtype: str = "float32", device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None
) -> DraftModel:
    """The same as a drafter: over the draft vocabulary of the folder, if it names one; reading, if its config says so.

    Its weights are packed less exactly where that is faster. `tokenizer`: one that is loaded already, in place of the
    folder's. Raises UserError as `load` does.
    """
    folder = Path(folder)
    model = _placed(folder, dtype, device, reads=True)
    tokenizer = tokenizer or load_tokenizer(folder)
    drafter = LanguageModel(model, tokenizer, folder.name, packed=True, rounded=True, format=graph_format(dtype))
    table = successors.load(folder / files.SUCCESSORS, drafter.vocabulary_size)
    return DraftModel(drafter, read_draft_vocabulary(folder), _read_fusion(folder, model.config), table)


def load_drafter_of(target: LanguageModel, folders: Mapping[str, Path], dtype: str, device: str) -> DraftModel:
    """The drafter of `folders` for the `target` of theirs that is loaded. Raises UserError as `load` does.

    Equal tokenizers and embeddings, which a drafter made of its target's layers has, are held once.
    """
    shared = target.tokenizer if same_tokenizer(folders["target"], folders["drafter"]) else None
    drafter = load_drafter(folders["drafter"], dtype, device, shared)
    drafter.language_model.share_embedding(target)
    return drafter


def load_pair(folders: Mapping[str, Path], dtype: str, device: str) -> Pair:
    """The models in the `folders` of `target` and, if there is one, `drafter`. Raises UserError as `load` does."""
    target = load(folders["target"], dtype, device)
    return Pair(target, load_drafter_of(target, folders, dtype, device) if "drafter" in folders else None)


def _placed(folder: Path, dtype: str, device: str, reads: bool = False) -> PreTrainedModel:
    torch_dtype, torch_device = resolve(dtype, device)
    model: PreTrainedModel = read(folder, torch_dtype, reads).to(torch_device)
    return model


def fingerprint(folder: Path) -> str:
    """SHA-256 that tells the model in `folder` apart: of its file of weights, and of all else that it decodes with.

    Where no manifest names it, of parts of each file of weights: a user's may be large.
    """
    manifest = folder / files.MANIFEST
    if manifest.is_file():
        with readable(str(manifest)):
            hashes = [str(files.read_json(manifest)["sha256"][files.WEIGHTS])]
    else:
        hashes = [files.sampled_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    for further in files.FURTHER:
        if (folder / further).is_file():
            hashes.append(files.sha256(folder / further))
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def fingerprints(folders: Mapping[str, Path]) -> dict[str, str]:
    """The `fingerprint` of each of the models in `folders`, by role."""
    return {role: fingerprint(folder) for role, folder in folders.items()}


def read_draft_vocabulary(folder: Path) -> Tensor | None:
    """The token ids [v] that the drafter in `folder` drafts over; None if it names none. Raises UserError."""
    path = folder / DRAFT_VOCABULARY
    if not path.is_file():
        return None
    try:
        ids = torch.tensor(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {first_line(error)}; expected a list of token ids") from error
    if ids.dim() != 1 or ids.dtype != torch.long or not len(ids) or len(ids.unique()) < len(ids):
        raise UserError(f"{path}: expected a list of distinct token ids")
    return ids


def _read_fusion(folder: Path, config: Any) -> fusion.Fusion | None:
    """What the drafter in `folder`, with this `config`, reads its target by; None if it reads nothing.

    Raises UserError for a file that does not fit the configuration.
    """
    reads = getattr(config, "draft_reads", None)
    if reads is None:
        return None
    eps = getattr(config, "rms_norm_eps", None) or config.layer_norm_eps
    with readable(f"model folder {str(folder)!r}: draft_reads in its config"):
        return fusion.load(folder, len(reads), config.hidden_size, eps)


def read(folder: Path, dtype: torch.dtype | None = None, reads: bool = False) -> Any:
    """transformers' model of a local `folder`, in `dtype` (None: that of its weights). Raises UserError.

    `reads`: it may be a drafter that reads its target's states, which is no language model by itself.
    """
    if not folder.is_dir():
        raise UserError(f"model: no folder {str(folder)!r}")
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {str(folder)!r} has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model folder {str(folder)!r} has no *.safetensors; pickled weights are not loaded")
    _check_generation_config(folder / "generation_config.json")
    # The report of loading is noise for users, except missing weights, which are an error here.
    with readable(f"model folder {str(folder)!r}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if not reads and getattr(config, "draft_reads", None) is not None:
            raise UserError(
                f"model folder {str(folder)!r} is of a drafter that reads its target's states (draft_reads), and no "
                "language model by itself; give it as a drafter to a method of ours"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(f"model folder {str(folder)!r} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def _check_generation_config(path: Path) -> None:
    """Refuse a file whose end-of-sequence tokens transformers would pass over in silence."""
    if not path.is_file():
        return
    with readable(str(path)):
        ends = files.read_json(path).get("eos_token_id")
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [] if ends is None else [ends])):
        raise UserError(f"{path}: eos_token_id is {ends!r}; expected a token id or a list of them")
