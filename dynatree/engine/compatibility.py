"""Which models can verify a token tree, and which pairs read the same tokens. Knows no checkpoint and no decoder."""

import inspect
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from dynatree.config import QUANTISED
from dynatree.engine.eager.layers import blocks
from dynatree.errors import UserError
from dynatree.tree import TokenTree

if TYPE_CHECKING:
    from dynatree.engine.draft_model import DraftModel
    from dynatree.engine.language_model import LanguageModel

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# What a graph computes in on CPUs (graph/); of the first two torch does where an architecture has none.
GRAPH_FORMATS = ("float32", "float16", *QUANTISED)

BITWISE, ROUNDING = "bitwise", "within rounding"

# Relative to the spread of the logits; a wrong mask is off by the spread itself, a wrong position by a part of it.
_PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}


def refuse_unsupported(model: PreTrainedModel, name: str) -> None:
    """Raise UserError for a model that a tree cannot be verified with, by what its configuration says."""
    # Where it holds several, as those of models that also take images do, the one of the text.
    config = model.config.get_text_config(decoder=True)
    accepted = inspect.signature(model.forward).parameters
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None) if not layer_types else None
    reason = None
    if model.config.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif layer_types - {"full_attention"}:
        reason = f"it has layers of type {', '.join(sorted(layer_types - {'full_attention'}))}"
    elif "local" in (getattr(config, "attention_layers", None) or ()):
        reason = f"it has local layers with a window of {config.window_size}"
    elif window is not None:
        reason = f"its attention has a sliding window of {window}"
    elif "cache" not in accepted:
        reason = "its forward takes no `cache` of keys and values (recurrent state?)"
    elif "position_ids" not in accepted:
        reason = "its forward takes no `position_ids`"
    elif getattr(config, "alibi", False):
        reason = "its positions are linear biases (ALiBi)"
    elif rope.get("rope_type") in ("dynamic", "longrope"):
        reason = f"its rotary positions ({rope['rope_type']}) depend on the longest position of a forward"
    elif model.dtype not in _PROBE_TOLERANCE:
        reason = f"its weights are {model.dtype}; choose one of {', '.join(DTYPES)}"
    if reason:
        raise UserError(
            f"{name} ({type(model).__name__}) cannot verify a token tree: {reason}. "
            "Use a decoder-only model with full attention, such as Llama, GPT-NeoX, GPT-2, Qwen2, Qwen3 or windowless "
            "Mistral"
        )


def refuse_not_finite(model: PreTrainedModel, name: str) -> None:
    """Raise UserError for weights that are no numbers, which codes would hide."""
    wrong = next((key for key, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    if wrong:
        raise UserError(f"{name} ({type(model).__name__}): {wrong} is not finite; models must have finite weights")


def probe(model: "LanguageModel") -> str:
    """Check on three nodes that `model` honours tree mask and positions: root -> a, root -> b. Raises UserError.

    BITWISE where, as far as a few further nodes show, a tree has the bits of its paths decoded token by token.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocabulary_size, (4,), generator=generator)
    (tree,) = model.new_caches(1)
    model.forward(tokens[:1], tree)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    branch = model.forward(tokens[1:], tree, torch.tensor([1, 2, 2]), mask)[2].float()
    tree.crop(1)
    far = min(9, (model.context_limit or 10) - 1)
    shifted = model.forward(tokens[1:], tree, torch.tensor([1, 2, far]), mask)[2].float()
    path = model.forward(tokens[[0, 1, 3]], model.new_caches(1)[0])[2].float()
    spread = float(path.std())
    error = float((branch - path).abs().max())
    # Near-uniform attention hides a wrong position from any tolerance, so a position must also have an effect.
    if (far > 2 and torch.equal(branch, shifted)) or not error <= _PROBE_TOLERANCE[model.dtype] * spread + 1e-6:
        raise UserError(
            f"{model.name} ({type(model.model).__name__}): a tree branch and the same path decoded without branches "
            f"differ by {error:.3g} in logits (spread {spread:.3g}); "
            "models must honour a 4-D attention mask and position_ids, and have finite weights"
        )
    # Without a graph the sums of attention depend on what stands beside a node, and nothing is promised.
    return BITWISE if model.in_graph and _bitwise(model, generator) else ROUNDING


# Nodes below the root of the tree that is compared to the bit, by their parents; and tokens before it: few, and such
# that its paths pass a block's end.
_PARENTS = (0, 0, 1, 1, 2, 3, 3)
_COMMITTED = (5, 286)


def _bitwise(model: "LanguageModel", generator: torch.Generator) -> bool:
    tree = TokenTree.root(0)
    for parent in _PARENTS:
        tree = tree.extend([parent], [0], [0.0])
    n, depth = len(tree), tree.depth
    # What has room for none of them is not looked at, and nothing is said of it.
    fitting = [count for count in _COMMITTED if count + depth < (model.context_limit or count + n)]
    for committed in fitting:
        text = torch.randint(model.vocabulary_size, (committed,), generator=generator)
        tokens = torch.randint(model.vocabulary_size, (n,), generator=generator)
        (cache,) = model.new_caches(1)
        model.forward(text, cache, last=1)
        together = model.forward(tokens, cache, tree.positions(committed), tree.attention_mask(committed))
        for node in (n - 1, 4, 5):
            cache.crop(committed)
            for place in tree.ancestors[node].nonzero():
                alone = model.forward(tokens[place], cache)
            if not torch.equal(alone[0], together[node]):
                return False
    return bool(fitting)


def pair_up(target: "LanguageModel", drafter: "DraftModel") -> tuple[int, ...]:
    """Make `target` ready to give the states that `drafter` and its table of successors read, if any: behind which
    layers. The table's are the last of them.

    Raises UserError unless both read the same token ids, by equal vocabulary sizes and equal tokenizers, and unless
    the target has such states.
    """
    if target is drafter.language_model or target.model is drafter.language_model.model:
        raise UserError(
            f"drafter and target are one object ({target.name}); load it twice, so that forwards are counted apart"
        )
    if target.tokenizer is not None and drafter.language_model.tokenizer is not None:
        ours, theirs = target.tokenizer.get_vocab(), drafter.language_model.tokenizer.get_vocab()
        if ours != theirs:
            token = next(t for t in sorted({*ours, *theirs}) if ours.get(t) != theirs.get(t))
            raise UserError(
                f"drafter {drafter.name} and target {target.name} have different tokenizers (for example {token!r} is "
                f"{theirs.get(token)} and {ours.get(token)}); take a drafter trained with the target's tokenizer"
            )
    if target.vocabulary_size != drafter.vocabulary_size:
        raise UserError(
            f"drafter {drafter.name} has a vocabulary of {drafter.vocabulary_size}, target {target.name} one of "
            f"{target.vocabulary_size}; take one with as many embeddings, trained with the target's tokenizer"
        )
    config = target.model.config
    fusion, context = drafter.fusion, drafter.successors.context if drafter.successors else None
    for reader, what in ((fusion, "reads states"), (context, "has a table of successors that reads states")):
        if reader is not None and reader.width != config.hidden_size:
            raise UserError(
                f"drafter {drafter.name} {what} of width {reader.width}, target {target.name} has "
                f"{config.hidden_size}; take a drafter trained for this target"
            )
    target.expose(drafter.reads)
    last = last_layer(target) if context else ()
    if drafter.reads and last and drafter.reads[-1:] != last:
        raise UserError(
            f"drafter {drafter.name}: draft_reads in its config is {[*drafter.reads]}, and its table of successors "
            f"reads what is behind layer {last[0]} of {target.name}; train it with that as the last of them"
        )
    reads = drafter.reads or last
    target.expose(reads)
    return reads


def last_layer(target: "LanguageModel") -> tuple[int, ...]:
    """The last layer of `target`, as `LanguageModel.expose` takes it; none where its layers are not known."""
    layers = blocks(target.model)
    return () if layers is None else (len(layers),)
