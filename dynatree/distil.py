"""Make a drafter for a target from its own layers: copy a few, freeze the tied embedding, train on tuning text.

The result is a standard checkpoint of the target's architecture and tokenizer. Layer-sharing drafters: Draft &
Verify (Zhang et al., ACL 2024, 2309.08168), LayerSkip (Elhoushi et al., ACL 2024, 2404.16710), here trained apart.
"""

import copy
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynatree.errors import UserError

# How each architecture names its block list and its final norm, below the base model.
_LAYOUT = {"llama": ("layers", "norm"), "gpt_neox": ("layers", "final_layer_norm")}


def shrink(target: PreTrainedModel, layers: Sequence[int], norm_scale: float) -> PreTrainedModel:
    """A float32 model of the same kind with copies of `layers` of `target`, its embedding, norm and head.

    The norm is scaled by `norm_scale`: few layers leave hidden states for which the full norm is overconfident.
    Raises UserError for an architecture whose layers it does not know, or a layer that is not there.
    """
    kind = target.config.model_type
    if kind not in _LAYOUT:
        raise UserError(f"distil: architecture {kind!r} is not supported; choose one of {', '.join(_LAYOUT)}")
    blocks, norm = _LAYOUT[kind]
    count = target.config.num_hidden_layers
    if not all(0 <= layer < count for layer in layers):
        raise UserError(f"layers: {list(layers)}; the target has layers 0..{count - 1}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    config.dtype = torch.float32
    drafter = type(target)(config).float()
    ours, theirs = drafter.base_model, target.base_model
    for block, layer in zip(getattr(ours, blocks), layers, strict=True):
        block.load_state_dict(getattr(theirs, blocks)[layer].state_dict())
    getattr(ours, norm).load_state_dict(getattr(theirs, norm).state_dict())
    drafter.get_input_embeddings().load_state_dict(target.get_input_embeddings().state_dict())
    drafter.get_output_embeddings().load_state_dict(target.get_output_embeddings().state_dict())
    drafter.generation_config = copy.deepcopy(target.generation_config)
    with torch.no_grad():
        getattr(ours, norm).weight.mul_(norm_scale)
    return drafter


def train(
    drafter: PreTrainedModel,
    text: Tensor,
    *,
    tokens: int,
    batch: int,
    length: int,
    learning_rate: float,
    vocabulary: int,
    negatives: int,
    repeat_share: float,
    seed: int,
) -> list[dict[str, float]]:
    """Train everything but embedding and head on `text` [total] until `tokens` were seen; returns the loss curve.

    Cross-entropy over the `vocabulary` most frequent tokens of the text and `negatives` drawn from the rest, whose
    logits are raised by log(rest / negatives) so that their sum estimates the whole softmax's (sampled softmax,
    Jean et al., ACL 2015). In `repeat_share` of the batches a random span comes twice, as looping text does.
    """
    check_text(text, length + 1, "tuning")
    generator = torch.Generator().manual_seed(seed)
    for embedding in (drafter.get_input_embeddings(), drafter.get_output_embeddings()):
        embedding.requires_grad_(False)
    head = drafter.get_output_embeddings().weight
    counts = torch.bincount(text, minlength=len(head))
    order = counts.argsort(descending=True, stable=True)
    frequent, rest = order[:vocabulary], order[vocabulary:]
    negatives = min(negatives, len(rest))
    column = torch.full((len(head),), -1)
    trained = [p for p in drafter.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    steps = max(1, tokens // (batch * length))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    curve: list[dict[str, float]] = []
    start = time.monotonic()
    drafter.train()
    for step in range(steps):
        ids = _batch(text, batch, length, repeat_share, generator)
        drawn = rest[torch.randint(len(rest), (negatives,), generator=generator)] if negatives else rest[:0]
        candidates = torch.cat([frequent, drawn])
        column.fill_(-1)
        column[candidates] = torch.arange(len(candidates))
        labels = column[ids[:, 1:]].flatten()
        hidden = drafter.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
        logits = hidden @ head[candidates].T
        if negatives:
            logits[:, len(frequent) :] += torch.tensor(len(rest) / negatives).log()
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % max(1, steps // 40) == 0 or step == steps - 1:
            seen, value = (step + 1) * batch * length, loss.item()
            curve.append({"tokens": seen, "loss": round(value, 4)})
            rate = seen / (time.monotonic() - start)
            print(f"distil: {seen:,} of {tokens:,} tokens, loss {value:.3f}, {rate:,.0f} tokens/s", file=sys.stderr)
    drafter.eval()
    return curve


def check_text(text: Tensor, least: int, split: str) -> None:
    """Raise UserError if `text` [n], of the split of that name, has fewer than `least` tokens."""
    if len(text) < least:
        raise UserError(f"distil: the {split} text has {len(text)} tokens; give at least {least}")


def _batch(text: Tensor, batch: int, length: int, repeat_share: float, generator: torch.Generator) -> Tensor:
    """Rows [batch, length] cut at random; in a share of the batches a span is copied behind itself."""
    starts = torch.randint(len(text) - length, (batch,), generator=generator)
    ids = text[starts[:, None] + torch.arange(length)]
    if torch.rand((), generator=generator) < repeat_share:
        span = int(torch.randint(2, length // 2 + 1, (1,), generator=generator))
        begin = int(torch.randint(length - 2 * span + 1, (1,), generator=generator))
        ids[:, begin + span : begin + 2 * span] = ids[:, begin : begin + span].clone()
    return ids


def agreement(drafter: PreTrainedModel, target: PreTrainedModel, text: Tensor, length: int) -> dict[str, float]:
    """How often the target's greedy choice is the drafter's first, or among its first three, along `text` [n].

    Teacher-forced over windows of `length` tokens; keys `top1`, `top3`, `positions`. Raises UserError if the text is
    shorter than one window.
    """
    check_text(text, length, "evaluation")
    hits1 = hits3 = positions = 0
    with torch.inference_mode():
        for ids in text[: len(text) // length * length].view(-1, length):
            wanted = target(input_ids=ids[None], use_cache=False).logits[0].argmax(-1)
            best = drafter(input_ids=ids[None], use_cache=False).logits[0].topk(3, dim=-1).indices
            hit = best == wanted[:, None]
            hits1 += int(hit[:, 0].sum())
            hits3 += int(hit.sum())
            positions += length
    return {"top1": round(hits1 / positions, 4), "top3": round(hits3 / positions, 4), "positions": positions}
