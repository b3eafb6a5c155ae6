"""A drafter's checkpoint as a GGUF file, for llama.cpp: a head over its draft vocabulary, and no tokenizer.

A model has one vocabulary there, for what goes in and for what comes out, and a head over all tokens costs a small
drafter several times what its layers do. So the vocabulary of the file is the draft vocabulary, whose rows of the head
stand where the embedding would; tokens go in as their embeddings (llama_cpp.py), whichever they are.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynatree import code_checksums, files
from dynatree.engine import checkpoint
from dynatree.errors import UserError

ARCHITECTURE = "llama"
# Of matrices: 8 bits a weight, in blocks of 32. The layers in 4 bits are no faster and right less often.
FORMAT, BLOCK = "Q8_0", 32


class DraftFile(NamedTuple):
    """The file at `path`; `vocabulary` [v]: the token of each of its rows; `embedding` [vocabulary, width] of every
    token, float32; `window`: most committed tokens that it drafts after, None: all.
    """

    path: Path
    vocabulary: np.ndarray
    embedding: np.ndarray
    window: int | None


def written(folder: Path, cache: Path) -> DraftFile:
    """The drafter in `folder` as a file in `cache`, which is written unless it is there.

    Raises UserError for an architecture other than Llama's, for biases and scaled rotary positions, and for matrices
    whose rows are no blocks.
    """
    model, vocabulary = checkpoint.read(folder, torch.float32), checkpoint.read_draft_vocabulary(folder)
    config, weights = model.config, model.state_dict()
    rope = config.rope_parameters if config.model_type == ARCHITECTURE else {}
    if rope.get("rope_type") != "default" or any(name.endswith(".bias") for name in weights):
        raise UserError(
            f"{folder.name}: a drafter of type {config.model_type!r}, or with biases or scaled positions, is not "
            f"written for llama.cpp; take one of type {ARCHITECTURE!r}, or leave benchmark.llama_cpp.draft out"
        )
    if wrong := [size for size in (config.hidden_size, config.intermediate_size) if size % BLOCK]:
        raise UserError(f"{folder.name}: rows of {wrong[0]} are not written for llama.cpp; take a multiple of {BLOCK}")
    head = model.get_output_embeddings().weight
    ids = torch.arange(len(head)) if vocabulary is None else vocabulary
    name = files.digest([checkpoint.fingerprint(folder), code_checksums.checksum(Path(__file__))])
    path = cache / f"{folder.name}-{name}.gguf"
    if not path.is_file():
        with files.replacing(path) as temporary:
            _write(temporary, config, weights, head[ids])
    embedding = model.get_input_embeddings().weight.detach().numpy()
    return DraftFile(path, ids.numpy(), embedding, getattr(config, "draft_window", None))


@torch.inference_mode()
def _write(path: Path, config: Any, weights: dict[str, Tensor], head: Tensor) -> None:
    import gguf  # what other commands do without

    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.head_dim or config.hidden_size // heads
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(len(head))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)

    def add(name: str, weight: Tensor) -> None:
        kind = gguf.GGMLQuantizationType[FORMAT if weight.dim() > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weight.float().numpy(), kind), raw_dtype=kind)

    add("token_embd.weight", head)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        known = names.get_name(name, (".weight",))
        if known is None:
            raise UserError(f"{path.name}: llama.cpp has no place for the weights {name!r}")
        if known.startswith(("token_embd", "output.")):
            continue
        if known.endswith(("attn_q.weight", "attn_k.weight")):
            weight = _interleaved(weight, heads if known.endswith("attn_q.weight") else groups)
        add(known, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows in the order of llama.cpp, whose rotary positions turn neighbours; transformers' turn halves of a head."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape)
