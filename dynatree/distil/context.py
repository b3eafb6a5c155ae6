"""Train what the target's state adds to a table of successors (engine/context.py), on the labels that made the table.

All tokens that are usual take part in the loss, those of a token's row with the table's log-probability, the others
with their usual one: what is learnt is what is to be added. Every step depends on labels, seed and its number alone.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dynatree.distil import labels
from dynatree.distil.recipe import ContextLabels
from dynatree.distil.training import LEVEL_DECAY, read_checkpoint
from dynatree.engine.context import COMMON, Context, InContext, normed
from dynatree.engine.successors import NEVER, Successors
from dynatree.errors import UserError
from dynatree.files import replacing

_WARM_UP = 50  # steps
_REPORTS = 20  # lines of progress, at most
_ROWS = 16  # of a step
_CHECKPOINT = 200  # steps
# Least log-probability of a token that was never likely.
_LEAST = -18.0


class _Network(nn.Module):
    """`Context` with gradients."""

    def __init__(self, knobs: ContextLabels, width: int):
        super().__init__()
        h = knobs.width
        self.state, self.token = nn.Linear(width, h), nn.Linear(width, h, bias=False)
        below = [nn.Linear(h, h) for _ in range(knobs.levels - 1)]
        self.deeper = nn.ModuleList(below)
        self._below = [(one.weight, one.bias) for one in below]
        self.hidden = nn.Linear(h, knobs.rank, bias=False)
        self.successor = nn.Linear(width, knobs.rank, bias=False)
        # At the start nothing is added to the table.
        nn.init.zeros_(self.hidden.weight)

    def weights(self) -> dict[str, Tensor]:
        """Those of `Context` that are learnt."""
        h, deeper = self.state.out_features, self._below
        return {
            "state": self.state.weight,
            "state_bias": self.state.bias,
            "token": self.token.weight,
            "deeper": torch.stack([weight for weight, _ in deeper]) if deeper else torch.zeros(0, h, h),
            "deeper_bias": torch.stack([bias for _, bias in deeper]) if deeper else torch.zeros(0, h),
            "hidden": self.hidden.weight,
            "successor": self.successor.weight,
        }


class Training:
    """The steps for the `table` of the labels in `shards`, in a network that adds nothing at the start.

    `embedding` [v, w]: the target's. `folder` keeps the checkpoint.
    """

    def __init__(
        self,
        knobs: ContextLabels,
        table: Successors,
        embedding: Tensor,
        shards: Sequence[Path],
        folder: Path,
        seed: int,
    ):
        self.knobs, self.shards, self.path, self.seed = knobs, shards, folder / "context.pt", seed
        usual, unseen = labels.usual(shards, len(table.ids))
        # As after writing, so that what is trained is what is read.
        self.usual, self.unseen = usual.log().clamp(min=_LEAST).half().float(), unseen.log().half().float()
        self.embedding = normed(embedding.detach())
        self.common = torch.argsort(self.usual, descending=True, stable=True)[:COMMON]
        column = torch.full((len(usual),), -1)
        column[self.common] = torch.arange(len(self.common))
        self.column = column
        ids, log_probs = torch.from_numpy(table.ids), torch.from_numpy(table.log_probs)
        # What a row has more than is usual, and where; of what is not common nothing.
        self.places = column[ids]
        more = log_probs - self.usual[ids] - self.unseen[:, None]
        self.more = more.masked_fill((self.places < 0) | (log_probs == NEVER), 0.0)
        self.places = self.places.clamp(min=0)
        torch.manual_seed(seed)
        self.network = _Network(knobs, embedding.shape[1])
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=knobs.learning_rate, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        if self.path.is_file():
            self._resume()

    def run(self) -> Context:
        """All steps; what was learnt."""
        batches = labels.batches(self.shards, self.knobs.passes, self.seed, lambda _: _ROWS)
        begun = time.monotonic() - self.seconds
        while self.step < len(batches):
            rate = min(1.0, (self.step + 1) / _WARM_UP) * max(0.02, 1 - self.step / len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = self.knobs.learning_rate * rate
            loss = self._loss(labels.read_rows(*batches[self.step], states=True))
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.step, self.seconds = self.step + 1, time.monotonic() - begun
            if self.step % max(1, len(batches) // _REPORTS) == 0:
                print(
                    f"distil: context step {self.step:,} of {len(batches):,}, loss {loss.item():.3f}, "
                    f"{self.seconds:,.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            if self.step % _CHECKPOINT == 0 or self.step == len(batches):
                self._save()
        learnt = {name: part.detach().half().float().numpy() for name, part in self.network.weights().items()}
        if not all(np.isfinite(part).all() for part in learnt.values()):
            raise UserError("distil: a weight of the context does not fit float16; lower labels.context.learning_rate")
        return Context(**learnt, usual=self.usual.numpy(), unseen=self.unseen.numpy())

    def _loss(self, rows: dict[str, Tensor]) -> Tensor:
        tokens, ids, probabilities = rows["tokens"], rows["ids"], rows["probabilities"].float()
        states = rows["states"][..., -self.embedding.shape[1] :].float()
        network, total, weights = self.network, torch.zeros(()), 0.0
        successors = network.successor(self.embedding[self.common])
        # A label stands behind its token; the token's state is that of the position before.
        before: Tensor = network.state(normed(states[:, :-1]))
        for level in range(self.knobs.levels):
            here = tokens[:, 1 + level :]
            hidden = nn.functional.silu(before + network.token(self.embedding[here]))
            weight = LEVEL_DECAY**level
            of = here.flatten(), ids[:, 1 + level :].flatten(0, 1), probabilities[:, 1 + level :].flatten(0, 1)
            total = total + weight * self._of(network.hidden(hidden.flatten(0, 1)), successors, *of)
            weights += weight
            if level + 1 < self.knobs.levels:
                before = network.deeper[level](hidden[:, :-1])
        return total / weights

    def _of(self, said: Tensor, successors: Tensor, tokens: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
        """Cross-entropy of what is `said` [p, r] behind `tokens` [p] to labels [p, k], of those that are common."""
        logits = nn.functional.linear(said, successors, self.usual[self.common])
        logits = logits.scatter_add(1, self.places[tokens], self.more[tokens])
        columns = self.column[ids]
        wanted = probabilities * (columns >= 0)
        logs = logits.gather(1, columns.clamp(min=0)) - logits.logsumexp(1, keepdim=True)
        return -(wanted * logs).sum(1).mean()

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": [self.step, self.seconds],
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        state = read_checkpoint(self.path)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["progress"]
        print(f"distil: going on from step {self.step:,} of the context", file=sys.stderr)


def agreement(table: Successors, embedding: Tensor, rows: dict[str, Tensor]) -> dict[str, float]:
    """How often the first, and one of the first three, of `table` is the target's choice in labelled `rows`.

    By the table alone, and by its context behind the target's states; both at a tree's first level.
    """
    assert table.context is not None, "asked of a table with a context"
    context = InContext(table.context, embedding)
    hits = {"table_top1": 0, "table_top3": 0, "context_top1": 0, "context_top3": 0}
    tokens, choices = rows["tokens"].tolist(), rows["ids"][..., 0].tolist()
    states = rows["states"][..., -table.context.width :].float().numpy()
    places = [(row, place) for row in range(len(tokens)) for place in range(1, len(tokens[row]))]
    for row, place in places:
        token, choice = tokens[row][place], choices[row][place]
        ids, alone = table.ids[token], table.log_probs[token]
        _, read = context.row(token, ids, alone, context.hidden(states[row, place - 1], token))
        for name, scores in (("table", alone), ("context", read)):
            best = ids[np.argsort(-scores, kind="stable")[:3]].tolist()
            hits[f"{name}_top1"] += best[0] == choice
            hits[f"{name}_top3"] += choice in best
    return {name: round(count / max(1, len(places)), 4) for name, count in hits.items()}
