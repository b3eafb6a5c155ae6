"""Where a model comes from: a package of the registry, a hub, a local folder, or chance. Always ends as one folder.

A model folder has exactly files.MODEL_FILES, whatever the source, so that a workflow can name them. How a drafter is
trained is not known here (distil/).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dynatree import files
from dynatree.config import Knobs
from dynatree.data import hub, registry
from dynatree.engine import fusion, successors
from dynatree.engine.checkpoint import read, read_draft_vocabulary
from dynatree.engine.fusion import Fusion
from dynatree.engine.successors import Successors
from dynatree.engine.tokenizer import require_tokenizer
from dynatree.errors import UserError, readable


class PackageWeights(Knobs):
    """A GGUF file inside a package of the registry."""

    kind: Literal["package"]
    package: registry.Package  # the archive that holds the file
    member: str  # name of the GGUF file in it
    member_sha256: str  # its checksum


class HubWeights(Knobs):
    """A repository of the model hub, safetensors only."""

    kind: Literal["hub"]
    repository: str  # OWNER/NAME
    revision: str | None = None  # branch, tag or commit; null: the hub's default


class LocalWeights(Knobs):
    """A folder in transformers' layout."""

    kind: Literal["local"]
    path: str  # the folder


class RandomWeights(Knobs):
    """Untrained weights of an architecture of transformers, with a byte tokenizer: for trying the machinery."""

    kind: Literal["random"]
    architecture: str  # transformers' model_type, such as llama
    configuration: dict[str, Any]  # arguments of that architecture's configuration


KINDS: dict[str, type[Knobs]] = {
    "package": PackageWeights,
    "hub": HubWeights,
    "local": LocalWeights,
    "random": RandomWeights,
}


def parse(values: Mapping[str, Any], also: Mapping[str, type[Knobs]] = MappingProxyType({})) -> Any:
    """The checked source of these keys; `also`: further kinds, by name, that the caller knows.

    Raises UserError for an unknown kind, pydantic's error for its keys.
    """
    kind, kinds = values.get("kind"), {**KINDS, **also}
    if kind not in kinds:
        raise UserError(f"kind: no {kind!r}; choose one of {', '.join(kinds)}")
    return kinds[kind](**values)


def build(source: Any, folder: Path, cache: Path, seed: int, drafter: bool = False) -> None:
    """Fetch or make the model of `source` and write it to `folder`. `cache` keeps downloads.

    A fetched `drafter` drafts every token that its embedding has; one of a local folder, those that the folder names.
    """
    if isinstance(source, PackageWeights):
        model, tokenizer, origin = _from_package(source, cache)
    elif isinstance(source, HubWeights):
        model, tokenizer, origin = _from_hub(source)
    elif isinstance(source, LocalWeights):
        model, tokenizer, origin = _from_local(source)
    elif isinstance(source, RandomWeights):
        model, tokenizer, origin = _random(source, seed)
    else:
        raise UserError(f"a model of kind {source.kind!r} is not fetched but trained")
    if not drafter:
        save(model, tokenizer, folder, origin)
        return
    vocabulary, table = _drafted(source, model), None
    if isinstance(source, LocalWeights):
        table = successors.load(Path(source.path) / files.SUCCESSORS, _tokens(model))
    save(model, tokenizer, folder, origin, vocabulary, table=table)


def _drafted(source: Any, model: PreTrainedModel) -> Sequence[int]:
    named = read_draft_vocabulary(Path(source.path)) if isinstance(source, LocalWeights) else None
    return range(_tokens(model)) if named is None else named.tolist()


def _tokens(model: PreTrainedModel) -> int:
    """Those that its embedding has."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: dict[str, Any],
    draft_vocabulary: Sequence[int] | None = None,
    reading: Fusion | None = None,
    table: Successors | None = None,
) -> None:
    """Write a model folder: everything to a temporary neighbour first, the manifest last.

    `draft_vocabulary` (a drafter's), what it reads its target by, `reading`, and its `table` of what its target puts
    after each token are written as further files.
    """
    names = list(files.MODEL_FILES[:-1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        with files.written(folder):
            # One shard, so that the file names are known beforehand.
            model.save_pretrained(temporary, max_shard_size="1TB")
            # A chat template goes into tokenizer_config.json, for the same reason.
            tokenizer.save_pretrained(temporary, save_jinja_files=False)
            model.generation_config.save_pretrained(temporary)
        if draft_vocabulary is not None:
            files.write_text(Path(temporary) / files.DRAFT_VOCABULARY, f"{list(draft_vocabulary)}\n")
            names.append(files.DRAFT_VOCABULARY)
        if reading is not None:
            fusion.save(reading, Path(temporary))
            names.append(files.FUSION)
        if table is not None:
            successors.save(table, Path(temporary) / files.SUCCESSORS)
            names.append(files.SUCCESSORS)
        hashes = {}
        for name in names:
            written = Path(temporary) / name
            if not written.is_file():
                raise UserError(f"{folder.name}: its tokenizer writes no {name}; a fast tokenizer is needed")
            hashes[name] = files.sha256(written)
        (folder / files.MANIFEST).unlink(missing_ok=True)
        for further in files.FURTHER:
            (folder / further).unlink(missing_ok=True)
        for name in names:
            (Path(temporary) / name).chmod(0o644)
            (Path(temporary) / name).replace(folder / name)
    files.write_json(folder / files.MANIFEST, {"origin": origin, "sha256": hashes})


def gguf_file(source: Any, cache: Path) -> Path:
    """The GGUF file that `source` comes from, in `cache`. Raises UserError for a source without one."""
    if not isinstance(source, PackageWeights):
        raise UserError(f"a model of kind {source.kind!r} has no GGUF file; those of kind 'package' have one")
    asked = source.package
    archive = registry.fetch(asked.requirement, asked.sha256, asked.file, cache, asked.options)
    return registry.extract_member(archive, source.member, cache / Path(source.member).name, source.member_sha256)


def _from_package(source: PackageWeights, cache: Path) -> tuple[Any, Any, dict[str, Any]]:
    from gguf import GGUFReader  # what hub or local models do without

    member = gguf_file(source, cache)
    tokenizer = AutoTokenizer.from_pretrained(cache, gguf_file=member.name)
    # transformers passes over it.
    template = GGUFReader(member).fields.get("tokenizer.chat_template")
    tokenizer.chat_template = template.contents() if template else None
    quantised = AutoModelForCausalLM.from_pretrained(cache, gguf_file=member.name, dtype=torch.float32)
    # A model read from GGUF refuses to be saved; a fresh one with its weights does not.
    config = type(quantised.config)(**quantised.config.to_diff_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    return model, tokenizer, source.model_dump(mode="json")


def _from_hub(source: HubWeights) -> tuple[Any, Any, dict[str, Any]]:
    with hub.access(f"model {source.repository!r}", "a model of kind `local`, with its `path`"):
        model = AutoModelForCausalLM.from_pretrained(
            source.repository, revision=source.revision, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source.repository, revision=source.revision, trust_remote_code=False)
    return model, tokenizer, source.model_dump(mode="json")


def _from_local(source: LocalWeights) -> tuple[Any, Any, dict[str, Any]]:
    folder = Path(source.path)
    return read(folder), require_tokenizer(folder), {"kind": "local", "folder": folder.name}


def _random(source: RandomWeights, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    with readable(f"architecture {source.architecture!r} with this configuration"):
        config = AutoConfig.for_model(source.architecture, vocab_size=len(tokenizer), **source.configuration)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # large enough that the argmax depends on the context
    return model, tokenizer, source.model_dump(mode="json")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte and one for the end of the text: a tokenizer that needs no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{symbol: i + 1 for i, symbol in enumerate(alphabet)}}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
