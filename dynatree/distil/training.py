"""Train a drafter's layers: first on text with its own next tokens, then on the target's probabilities.

Every step depends on the recipe, the seed and its number alone, so that a checkpoint goes on as if nothing had been.
Only a budget of `minutes` brings in the clock: it says when a phase ends and how far its learning rate has fallen.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from dynatree.distil import labels
from dynatree.distil.recipe import Recipe
from dynatree.distil.student import load_trained_part, trained_part
from dynatree.distil.text import TrainingText, cut, repeat_span
from dynatree.distil.unrolled import unrolled
from dynatree.engine.fusion import Fusion
from dynatree.errors import UserError
from dynatree.files import replacing

_WARM_UP = 20  # steps
_REPORTS = 40  # lines of progress, at most

_SCALED = 8  # rows whose states say how large states are

# A level's loss counts so much of the one's before it, since it is drafted only behind that one's hits.
LEVEL_DECAY = 0.8

# Of rows [rows, length]: tokens, and for each position the ids and probabilities [rows, length, k] of its labels; for a
# drafter that reads, also states [rows, length, reads * width].
Labelled = dict[str, Tensor]


def hidden_states(drafter: PreTrainedModel, batch: Labelled, levels: int) -> list[tuple[int, Tensor]]:
    """The first position and the states [rows, n - first, width] behind the final norm, of each level of a drafter.

    One that reads no states has one level, from position 0 on.
    """
    tokens = batch["tokens"].to(drafter.device)
    if "states" not in batch:
        return [(0, drafter.base_model(input_ids=tokens, use_cache=False).last_hidden_state)]
    fusion = cast(Fusion, drafter.fusion)
    return list(enumerate(unrolled(drafter, fusion, tokens, batch["states"].to(drafter.device), levels), 1))


class Loss:
    """Cross-entropy to those labels that are in the draft vocabulary, everything else counted as one token more.

    Logits of `negatives` drawn tokens, raised by log(rest / negatives), stand for all tokens outside the vocabulary
    (sampled softmax, Jean et al., ACL 2015); so probabilities stay right over the whole vocabulary, too.
    """

    def __init__(self, drafter: PreTrainedModel, order: Tensor, recipe: Recipe):
        self.head = drafter.get_output_embeddings().weight.detach()
        order = order.to(self.head.device)
        self.dtype = getattr(torch, recipe.dtype)
        self.frequent, self.rest = order[: recipe.vocabulary], order[recipe.vocabulary :]
        self.negatives = min(recipe.negatives, len(self.rest))
        self.rows = self.head[self.frequent].to(self.dtype)
        self.column = torch.full((len(order),), -1, device=self.head.device)
        self.column[self.frequent] = torch.arange(len(self.frequent), device=self.head.device)
        self.argmax_weight = recipe.labels.argmax_weight if recipe.labels else 0.0
        self.levels = recipe.levels

    def __call__(self, drafter: PreTrainedModel, batch: Labelled, soft: bool, generator: torch.Generator) -> Tensor:
        device = self.head.device
        rows = self.rows
        if self.negatives:
            drawn = self.rest[torch.randint(len(self.rest), (self.negatives,), generator=generator).to(device)]
            rows = torch.cat([rows, self.head[drawn].to(self.dtype)])
        ids, probabilities = batch["ids"].to(device), batch["probabilities"].to(device).float()
        total, weights = torch.zeros((), device=device), 0.0
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = [
                (first, (hidden.flatten(0, 1) @ rows.T).float())
                for first, hidden in hidden_states(drafter, batch, self.levels)
            ]
        for level, (first, logits) in enumerate(found):
            here = ids[:, first:].flatten(0, 1), probabilities[:, first:].flatten(0, 1)
            total = total + LEVEL_DECAY**level * self._of(logits, *here, soft)
            weights += LEVEL_DECAY**level
        return total / weights

    def _of(self, logits: Tensor, ids: Tensor, wanted: Tensor, soft: bool) -> Tensor:
        """The loss of `logits` [p, drafted + negatives] for labels [p, k]."""
        if self.negatives:
            raised = torch.tensor(len(self.rest) / self.negatives).log().item()
            logits = torch.cat([logits[:, : len(self.frequent)], logits[:, len(self.frequent) :] + raised], dim=1)
        columns = self.column[ids]
        if soft and self.argmax_weight:
            wanted = wanted * (1 - self.argmax_weight)
            wanted[:, 0] += self.argmax_weight
        wanted = wanted * (columns >= 0)
        logs = logits.log_softmax(-1).gather(1, columns.clamp(min=0))
        other = 1 - (logs.exp() * (columns >= 0)).sum(-1)
        left = (1 - wanted.sum(-1)).clamp(min=0)
        return -((wanted * logs).sum(-1) + left * other.clamp(min=1e-6).log()).mean()


class Training:
    """The steps of a recipe on one drafter, in place; `folder` keeps the checkpoint, `watch` measures on the way.

    `fresh`: the drafter was never trained, so that what reads states has yet to learn how large they are.
    """

    def __init__(
        self,
        drafter: PreTrainedModel,
        recipe: Recipe,
        text: TrainingText,
        order: Tensor,
        folder: Path,
        seed: int,
        watch: Callable[[], dict[str, float]] | None = None,
        checkpoint_steps: int = 200,
        fresh: bool = True,
    ):
        self.drafter, self.recipe, self.text, self.seed, self.watch = drafter, recipe, text, seed, watch
        self.path, self.checkpoint_steps, self.fresh = folder / "checkpoint.pt", checkpoint_steps, fresh
        self.trained = list(trained_part(drafter).values())
        parameters = [p for p in drafter.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.loss = Loss(drafter, order, recipe)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, Any]] = []
        self.ends: list[tuple[int, float]] = []  # step and seconds at the end of each phase that is over
        if self.path.is_file():
            self._resume()

    def on_text(self) -> None:
        """The first phase. The rate falls to 0 at its end if there are no labels, else it stays."""
        recipe = self.recipe
        if not recipe.tokens:
            return
        steps = max(1, recipe.tokens // (recipe.batch * recipe.length))
        labelled = recipe.labels.passes * recipe.labels.tokens if recipe.labels else 0
        share = recipe.tokens / (recipe.tokens + labelled)
        self._run(0, self._text_batch, steps, soft=False, falling=recipe.labels is None, share=share)

    def on_labels(self, shards: Sequence[Path]) -> None:
        """The second phase: `passes` over all shards in batches from one shard each; the rate falls to 0."""
        recipe = self.recipe
        assert recipe.labels is not None
        batches = labels.batches(
            shards, recipe.labels.passes, self.seed, lambda length: max(1, recipe.batch * recipe.length // length)
        )
        if recipe.reads and self.fresh and not self.step:
            with safe_open(shards[0], "pt") as shard:
                cast(Fusion, self.drafter.fusion).scale(shard.get_slice("states")[:_SCALED].flatten(0, 1))
        phase = 1 if recipe.tokens else 0
        start = self.ends[0][0] if phase else 0

        def batch(step: int, _: torch.Generator) -> Labelled:
            # States may be there for the table alone (context.py).
            return labels.read_rows(*batches[step - start], states=bool(recipe.reads))

        self._run(phase, batch, len(batches), soft=True, falling=True, share=1.0)

    def _text_batch(self, step: int, generator: torch.Generator) -> Labelled:
        recipe = self.recipe
        rows = cut(self.text.training, self.text.weights, recipe.batch, recipe.length + 1, generator)
        if torch.rand((), generator=generator) < recipe.repeat_share:
            rows = repeat_span(rows, generator)
        return {"tokens": rows[:, :-1], "ids": rows[:, 1:, None], "probabilities": torch.ones(*rows[:, 1:].shape, 1)}

    def _run(
        self,
        phase: int,
        batch: Callable[[int, torch.Generator], Labelled],
        steps: int,
        soft: bool,
        falling: bool,
        share: float,
    ) -> None:
        """All `steps` of a phase, or as many as fit when `share` of the budget is to be over with its end."""
        if len(self.ends) > phase:
            return  # a checkpoint from behind it
        first, since = self.ends[-1] if self.ends else (0, 0.0)
        budget = None if self.recipe.minutes is None else max(0.0, 60 * self.recipe.minutes * share - since)
        begun = time.monotonic() - self.seconds
        fresh_from, fresh_tokens = time.monotonic(), self.tokens
        self.drafter.train()
        while (done := self._done(first, steps, since, budget)) < 1:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 2 + 1)
            rows = batch(self.step, generator)
            rate = min(1.0, (self.step + 1) / _WARM_UP) * (1 - done if falling else 1.0)
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate * rate
            loss = self.loss(self.drafter, rows, soft, generator)
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.step += 1
            self.tokens += rows["tokens"].numel()
            self.seconds = time.monotonic() - begun
            over = self._done(first, steps, since, budget) >= 1
            if (self.step - first) % max(1, steps // _REPORTS) == 0 or over:
                speed = (self.tokens - fresh_tokens) / (time.monotonic() - fresh_from)
                self._report(loss.item(), soft, first + steps, speed)
            if self.step % self.checkpoint_steps == 0 and not over:
                self._save()
        self.ends.append((self.step, self.seconds))
        self._save()
        self.drafter.eval()

    def _done(self, first: int, steps: int, since: float, budget: float | None) -> float:
        """How much of a phase is over, by its steps or, where that is more, by its seconds."""
        taken = (self.step - first) / steps
        if budget is None:
            return taken
        return max(taken, (self.seconds - since) / budget) if budget else 1.0

    def _report(self, loss: float, soft: bool, last: int, speed: float) -> None:
        measured = self.watch() if self.watch else {}
        objective = "labels" if soft else "text"
        self.curve.append({"objective": objective, "tokens": self.tokens, "loss": round(loss, 4), **measured})
        # Deeper levels stand in the record.
        shown = "".join(f", {name} {value:.3f}" for name, value in measured.items() if "_level" not in name)
        print(
            f"distil: {objective} step {self.step:,} of {last:,}, {self.tokens:,} tokens, loss {loss:.3f}{shown}, "
            f"{speed:,.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "trained": trained_part(self.drafter),
            "optimiser": self.optimiser.state_dict(),
            "progress": json.dumps([self.step, self.tokens, self.seconds, self.curve, self.ends]),
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        state = read_checkpoint(self.path, self.drafter.device)
        load_trained_part(self.drafter, state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.tokens, self.seconds, self.curve, self.ends = json.loads(state["progress"])
        print(f"distil: going on from step {self.step:,} ({self.tokens:,} tokens)", file=sys.stderr)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Any:
    """What a training wrote to `path`. Raises UserError if it is damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, IndexError, UnpicklingError) as error:
        raise UserError(f"{path}: not a checkpoint of this training; remove it to start again") from error
