"""The target's likeliest next tokens over text and over its own continuations, in shards on disk.

A shard depends on the recipe, the seed and its number alone, so that a stopped run goes on with the next number.
Position j of a row holds the target's distribution of the token behind tokens 0..j and, for a drafter that reads them,
the target's states there.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from dynatree.distil.dialogue import Template, Turns
from dynatree.distil.recipe import Labels
from dynatree.distil.text import TrainingText, cut
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.eager.layers import reading
from dynatree.engine.successors import Successors, counted, everywhere, unseen
from dynatree.files import replacing

# Positions of one forward; positions whose logits over the whole vocabulary are held at once, few enough for a cache.
_FORWARD, _LOGITS = 2048, 128


def measure(path: Path) -> tuple[int, float]:
    """Labelled positions in a shard, and the seconds that it took."""
    with safe_open(path, "pt") as opened:
        rows, length = opened.get_slice("tokens").get_shape()
        return int(rows * length), float(opened.metadata()["seconds"])


def write_shards(
    target: PreTrainedModel,
    text: TrainingText,
    labels: Labels,
    length: int,
    folder: Path,
    seed: int,
    reads: Sequence[int] = (),
    dialogue: Template | None = None,
) -> list[Path]:
    """The shards that hold `labels.tokens` positions, or took `labels.seconds`; those that are there are kept."""
    done, spent = 0, 0.0
    paths: list[Path] = []
    while done < labels.tokens and (labels.seconds is None or spent < labels.seconds):
        path = folder / f"{len(paths):05d}.safetensors"
        fresh = not path.is_file()
        if fresh:
            begun = time.monotonic()
            rows = make_shard(target, text, labels, length, len(paths), seed, reads, dialogue)
            with replacing(path) as temporary:
                save_file(rows, temporary, {"seconds": str(time.monotonic() - begun)})
        paths.append(path)
        size, seconds = measure(path)
        done, spent = done + size, spent + seconds
        if fresh:
            speed = f"{size / seconds:,.0f} tokens/s"
            print(f"distil: labels for {done:,} of {labels.tokens:,} tokens, {speed}", file=sys.stderr, flush=True)
    return paths


def successors_of(paths: Sequence[Path], vocabulary: int, kept: int) -> Successors:
    """What the shards hold as a table: of each token the `kept` likeliest after it (engine/successors.py)."""
    return counted(*_labelled(paths), vocabulary, kept)


def usual(paths: Sequence[Path], vocabulary: int) -> tuple[Tensor, Tensor]:
    """`everywhere` and `unseen` [vocabulary] of that table."""
    tokens, ids, probabilities = _labelled(paths)
    return everywhere(ids, probabilities, vocabulary), unseen(tokens, vocabulary)


def _labelled(paths: Sequence[Path]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [n], ids and probabilities [n, top] of all positions of the shards."""
    found: dict[str, list[Tensor]] = {"tokens": [], "ids": [], "probabilities": []}
    for path in paths:
        # Not the states, which are most of a shard.
        with safe_open(path, "pt") as opened:
            for name, parts in found.items():
                parts.append(opened.get_tensor(name).flatten(0, 1))
    tokens, ids, probabilities = (torch.cat(parts) for parts in found.values())
    return tokens.long(), ids.long(), probabilities


def batches(paths: Sequence[Path], passes: int, seed: int, rows_of: Callable[[int], int]) -> list[tuple[Path, Tensor]]:
    """(shard, its rows) of every step, in the order of `seed`; `rows_of`: how many of a shard, by their length."""
    found = []
    for turn in range(passes):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        parts: list[tuple[Path, Tensor]] = []
        for path in paths:
            with safe_open(path, "pt") as opened:
                rows, length = opened.get_slice("tokens").get_shape()
            parts += [(path, part) for part in torch.randperm(rows, generator=generator).split(rows_of(length))]
        found += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return found


def read_rows(path: Path, rows: Tensor, states: bool) -> dict[str, Tensor]:
    """These `rows` of a shard: whole numbers as int64, all else as it is. `states`: with them, where it has any."""
    with safe_open(path, "pt") as shard:
        names = [name for name in shard.keys() if states or name != "states"]  # noqa: SIM118
        # A row at a time: with states a shard is large.
        parts = {name: shard.get_slice(name) for name in names}
        found = {name: torch.cat([part[row : row + 1] for row in rows.tolist()]) for name, part in parts.items()}
    return {name: value if value.is_floating_point() else value.long() for name, value in found.items()}


def make_shard(
    target: PreTrainedModel,
    text: TrainingText,
    labels: Labels,
    length: int,
    number: int,
    seed: int,
    reads: Sequence[int] = (),
    dialogue: Template | None = None,
) -> dict[str, Tensor]:
    """Shard `number`: `tokens` [rows, length], `ids` and `probabilities` [rows, length, top], likeliest first.

    With `reads` (counts of layers) also `states` [rows, length, reads * width] in the target's dtype. `dialogue`: the
    target's chat template, for the shards of dialogues.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    temperatures, penalties = (_in_turn(values, labels.rows) for values in (labels.temperatures, labels.penalties))
    if _falls(number, labels.text_share):
        return score(target, cut(text.training, text.weights, labels.rows, length, generator), labels.top, reads)
    # Of the shards that hold no text, so that both shares are met whatever they are.
    if dialogue and _falls(number - int(number * labels.text_share), labels.dialogue_share / (1 - labels.text_share)):
        prompts = torch.tensor(dialogue.opening).expand(labels.rows, -1)
        new_tokens = max(1, length - len(dialogue.opening))
        turns = Turns(dialogue, temperatures)
        return continuations(target, prompts, new_tokens, turns, labels.top, generator, reads, penalties)
    shortest = max(1, labels.prompt_tokens // 4)
    prompt_length = int(torch.randint(shortest, labels.prompt_tokens + 1, (1,), generator=generator))
    prompts = cut(text.training, text.weights, labels.rows, prompt_length, generator)
    return continuations(target, prompts, labels.new_tokens, temperatures, labels.top, generator, reads, penalties)


def _falls(number: int, share: float) -> bool:
    """Whether `number` is one of the `share` of all numbers, evenly spread."""
    return int((number + 1) * share) > int(number * share)


def _in_turn(values: tuple[float, ...], rows: int) -> Tensor:
    return torch.tensor(values * -(-rows // len(values)))[:rows]


@torch.inference_mode()
def score(target: PreTrainedModel, tokens: Tensor, top: int, reads: Sequence[int] = ()) -> dict[str, Tensor]:
    """Labels of `tokens` [rows, length], by plain forwards over a few rows at a time."""
    found = []
    with reading(target, reads) as read:
        for rows in tokens.to(target.device).split(max(1, _FORWARD // tokens.shape[1])):
            hidden = target.base_model(input_ids=rows, use_cache=False).last_hidden_state
            found.append((*_likeliest(target, hidden, top), *read))
    return _shard(tokens, [torch.cat(parts) for parts in zip(*found, strict=True)])


@torch.inference_mode()
def continuations(
    target: PreTrainedModel,
    prompts: Tensor,
    new_tokens: int,
    temperatures: Tensor | Turns,
    top: int,
    generator: torch.Generator,
    reads: Sequence[int] = (),
    penalties: Tensor | None = None,
) -> dict[str, Tensor]:
    """Labels of `prompts` [rows, n] and of `new_tokens` that the target adds to each row.

    At its temperature [rows], 0 for greedy, and with its repetition penalty [rows], 1 for none (None: none at all),
    which changes the text and not the labels of it. Tokens are sampled among the `top` likeliest, the end of the
    sequence left out; `Turns` in place of temperatures make dialogues of the rows, in which it ends a turn. The last
    token is not kept: it has no label.
    """
    device = target.device
    ends = target.generation_config.eos_token_id
    turns = temperatures if isinstance(temperatures, Turns) else None
    ends = torch.tensor([] if ends is None or turns else ends, device=device).flatten()
    caches = KeyValueCache.rows(len(prompts))
    tokens = prompts.to(device)
    penalties = torch.ones(len(prompts)) if penalties is None else penalties
    # Of each penalty the rows that have it.
    penalised = [
        (RepetitionPenaltyLogitsProcessor(penalty), (penalties == penalty).nonzero().flatten().to(device))
        for penalty in penalties.unique().tolist()
        if penalty != 1
    ]
    step, seen, found = tokens, None, []
    with reading(target, reads) as read:
        for _ in range(new_tokens):
            KeyValueCache.place(caches, [step.shape[1]] * len(caches))
            hidden = target.base_model(
                input_ids=step, attention_mask=seen, cache=caches[0].states, use_cache=True
            ).last_hidden_state
            # A mask that hides nothing: with one, the heads that share a key are multiplied together, 4 times faster.
            seen = torch.ones(1, 1, 1, caches[0].length + 1, dtype=torch.bool, device=device)
            ids, probabilities = _likeliest(target, hidden, top)
            found.append((ids, probabilities, *read))
            ids, logits = ids[:, -1].clone(), probabilities[:, -1].log()
            for processor, rows in penalised:
                scores = processor(tokens[rows], target.get_output_embeddings()(hidden[rows, -1]).float())
                # The best replace what is likeliest without the penalty; the text's own logits need no normalisation.
                logits[rows], ids[rows] = scores.topk(logits.shape[1], dim=-1)
            warm = (temperatures.warmth if isinstance(temperatures, Turns) else temperatures).to(device)[:, None]
            # The Gumbel trick: the argmax of noisy logits is a sample of their softmax.
            noise = torch.empty(logits.shape).exponential_(generator=generator).to(device)
            noisy = (logits - warm * noise.log()).masked_fill(torch.isin(ids, ends), float("-inf"))
            step = ids.gather(1, noisy.argmax(-1, keepdim=True))
            step = turns.follow(step).to(device) if turns else step
            tokens = torch.cat([tokens, step], dim=1)
    return _shard(tokens[:, :-1], [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)])


def _likeliest(target: PreTrainedModel, hidden: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` likeliest tokens of `hidden` [rows, n, size] and their probabilities, both [rows, n, top]."""
    ids, probabilities = [], []
    for part in hidden.flatten(0, 1).split(_LOGITS):
        logits = target.get_output_embeddings()(part).float()
        best = logits.topk(min(top, logits.shape[-1]), dim=-1)
        ids.append(best.indices)
        probabilities.append((best.values - logits.logsumexp(-1, keepdim=True)).exp())
    shape = (*hidden.shape[:2], -1)
    return torch.cat(ids).view(shape), torch.cat(probabilities).view(shape)


def _shard(tokens: Tensor, found: Sequence[Tensor]) -> dict[str, Tensor]:
    ids, probabilities, *states = found
    shard = {"tokens": tokens.int(), "ids": ids.int(), "probabilities": probabilities.half()}
    if states:
        shard["states"] = torch.cat(states, dim=-1)
    return {name: value.cpu().contiguous() for name, value in shard.items()}
