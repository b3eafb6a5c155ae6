"""What a drafter would give in decoding: rounds along the target's greedy text, timed by the measured cost table.

Accepted tokens are the target's own, so teacher forcing decides every round exactly as decoding would (greedy chains,
static trees and lookup alike); of a drafter that reads states each level is followed on its own, since only the first
has the target's. Only the seconds are the table's instead of a clock's. The prefill is left out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from dynatree.costs.calibration import Calibration
from dynatree.costs.cost_table import CostTable
from dynatree.distil.unrolled import drafted as drafts_along
from dynatree.drafting import lookup
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.errors import UserError
from dynatree.measuring.calibrate import teacher_forced
from dynatree.policies.optimal import best_trees

CHAINS = range(1, 9)
# Limits of the trees that are tried: levels, children of a node, nodes besides the root.
DEPTH, BRANCH, BUDGET = 8, 8, 63
LOOKED_UP = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 63)
# Of transformers' prompt lookup: tokens drafted, longest n-gram.
PROMPT_LOOKUP = [(tokens, ngram) for tokens in (2, 3, 5, 10, 20) for ngram in (2, 3)]
ORACLE = range(64)  # tokens drafted in a round, as in the figure oracle_gap

Children = tuple[tuple[int, ...], ...]  # nodes below each node, likeliest rank first; node 0 is the root
Pair = tuple[list[int], list[int]]  # prompt, the target's greedy continuation
Propose = Callable[[list[int], int], list[int]]  # (text, most tokens) -> tokens of a chain


class Round(NamedTuple):
    """One round: `drafted` nodes verified, `accepted` of them right; tokens `fed` to the drafter in each forward."""

    drafted: int
    accepted: int
    fed: tuple[int, ...] = ()


class Clock:
    """Seconds of rounds by a cost table, each at the measured context nearest to what is committed by then."""

    def __init__(self, table: CostTable):
        most = 1 + max(BUDGET, *LOOKED_UP, *ORACLE)
        self._table = table
        self._verify = [table.verify.at(context, most).tolist() for context in table.verify.contexts]
        self._draft = [table.draft.at(c, most).tolist() for c in table.draft.contexts] if table.draft else []

    def seconds(self, rounds: Iterable[Round], prompt_tokens: int) -> float:
        """Of all rounds, the first of them behind the prompt; the root of a round is not in the cache yet."""
        total, context = 0.0, prompt_tokens
        for drafted, accepted, fed in rounds:
            total += self._verify[self._table.verify.nearest(context)][1 + drafted]
            if fed:
                assert self._table.draft is not None, "a table without draft costs is asked for lookup alone"
                level = self._draft[self._table.draft.nearest(context)]
                total += sum(level[tokens] for tokens in fed)
            context += accepted + 1
        return total


def chain(tokens: int) -> Children:
    """A chain of `tokens` tokens as a tree."""
    return (*((node,) for node in range(1, tokens + 1)), ())


def tree_rounds(children: Children, ranks: Sequence[Sequence[int]]) -> list[Round]:
    """Rounds of a static tree; `ranks[level][i]` is the drafter's rank of token i of the output, large for none.

    Levels that read states have ranks each, other drafters one list. As decoding/speculative.py does it: the first
    token is the prefill's; a tree has one level less than tokens are still wanted; the first forward of a round feeds
    the last token and, behind an accepted leaf, that leaf. One that reads feeds all accepted tokens, whose states it
    has only now.
    """
    shapes, total = _levels(children), len(ranks[0])
    rounds, at, lag = [], 1, 1
    while at < total:
        levels = min(len(shapes) - 1, total - at - 1)
        drafted, widths = shapes[levels]
        node = accepted = 0
        while accepted < levels and (rank := ranks[accepted % len(ranks)][at + accepted]) < len(children[node]):
            node = children[node][rank]
            accepted += 1
        rounds.append(Round(drafted, accepted, (lag, *widths[1:]) if levels else ()))
        lag = accepted + 1 if len(ranks) > 1 else 1 if children[node] and accepted < levels else 2
        at += accepted + 1
    return rounds


def _levels(children: Children) -> list[tuple[int, tuple[int, ...]]]:
    """For 0, 1, ... levels of the tree: its nodes without the root, and how many nodes are expanded at each level."""
    found: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    level = [0]
    while below := [child for node in level for child in children[node]]:
        nodes, widths = found[-1]
        found.append((nodes + len(below), (*widths, sum(1 for node in level if children[node]))))
        level = below
    return found


def lookup_rounds(pair: Pair, tokens: int, propose: Propose) -> list[Round]:
    """Rounds of chains of at most `tokens` tokens that `propose` finds in the text so far."""
    prompt, output = pair
    text, last = [*prompt, *output], len(prompt) + len(output)
    rounds, at = [], len(prompt) + 1
    while at < last:
        proposed = propose(text[:at], min(tokens, last - at - 1))
        accepted = 0
        while accepted < len(proposed) and proposed[accepted] == text[at + accepted]:
            accepted += 1
        rounds.append(Round(len(proposed), accepted))
        at += accepted + 1
    return rounds


def own_lookup() -> Propose:
    """Our lookup for one request: the latest longest match, around a cycle where it reaches the text's end."""
    found = lookup.Lookup()

    def propose(text: list[int], most: int) -> list[int]:
        return found.propose(text, most)[0]

    return propose


def prompt_lookup(ngram: int) -> Propose:
    """transformers' prompt lookup, by its own code: the first match of up to `ngram` tokens."""

    def propose(text: list[int], most: int) -> list[int]:
        if not most:
            return []
        generator = PromptLookupCandidateGenerator(None, most, ngram, max_length=len(text) + most + 1)
        found: Tensor = generator.get_candidates(torch.LongTensor([text]))[0]
        return found[0, len(text) :].tolist()

    return propose


def ranks(drafter: DraftModel, pair: Pair, target: LanguageModel | None = None) -> list[list[int]]:
    """The drafter's rank of each token of the output, as many ranks as were looked at where it is not among them.

    Of a drafter that reads the states of `target` a list for each of `DEPTH` levels, else one.
    """
    if drafter.reads:
        assert target is not None, "a drafter that reads is followed along its target's states"
        return _level_ranks(drafter, pair, target)
    _, hits = teacher_forced(drafter, *pair)
    if len(hits) < len(pair[1]):
        raise UserError(
            f"prompt of {len(pair[0])} + continuation of {len(pair[1])} exceed {drafter.name}'s context of "
            f"{drafter.context_limit}; take shorter rows"
        )
    return [_first(hits)]


def _level_ranks(drafter: DraftModel, pair: Pair, target: LanguageModel) -> list[list[int]]:
    text, found = torch.tensor([*pair[0], *pair[1]]), []
    for logits in drafts_along(drafter, target, text[:-1], DEPTH):
        wanted = text[-len(logits) :]
        best = drafter.token_ids(logits.topk(min(BRANCH, logits.shape[1]), dim=-1).indices.cpu())
        ranks = _first(best == wanted[:, None])
        # A level has nothing at the first positions of a short prompt, where no draft of it stands either.
        found.append([BRANCH] * (len(pair[1]) - len(ranks)) + ranks[max(0, len(ranks) - len(pair[1])) :])
    return found


def _first(hits: Tensor) -> list[int]:
    found: list[int] = torch.where(hits.any(1), hits.int().argmax(1), hits.shape[1]).tolist()
    return found


def simulate(
    drafter: DraftModel, pairs: Sequence[Pair], calibration: Calibration, target: LanguageModel | None = None
) -> list[dict[str, Any]]:
    """Speeds on `pairs` by the calibration of this machine and drafter, a row a method and setting.

    Every chain of `CHAINS`; of trees, both lookups and the oracle the fastest setting on these very pairs, so a
    setting chosen elsewhere is at most as fast. The trees tried are the best ones for the calibration's rates
    (policies/optimal.py). The oracle drafts the continuation itself for nothing. `target`: for a drafter that reads its
    states. Raises UserError without draft costs.
    """
    if calibration.costs.draft is None:
        raise UserError("calibration: it has no draft costs; measure it with the drafter")
    clock = Clock(calibration.costs)
    found = [ranks(drafter, pair, target) for pair in pairs]
    right = [[[0] * len(output)] for _, output in pairs]

    def row(method: str, setting: str, rounds: list[list[Round]]) -> dict[str, Any]:
        emitted, count = sum(len(output) - 1 for _, output in pairs), sum(map(len, rounds))
        seconds = sum(clock.seconds(one, len(prompt)) for one, (prompt, _) in zip(rounds, pairs, strict=True))
        return {
            "method": method,
            "setting": setting,
            "tokens_per_round": round(emitted / count, 4),
            "tokens_per_second": round(emitted / seconds, 3),
        }

    def fastest(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        return max(rows, key=lambda one: one["tokens_per_second"])

    def walked(children: Children) -> list[list[Round]]:
        return [tree_rounds(children, of) for of in found]

    def looked_up(tokens: int, ngram: int | None = None) -> list[list[Round]]:
        return [lookup_rounds(pair, tokens, prompt_lookup(ngram) if ngram else own_lookup()) for pair in pairs]

    def drafted_right(tokens: int) -> list[list[Round]]:
        return [[one._replace(fed=()) for one in tree_rounds(chain(tokens), of)] for of in right]

    rates = calibration.step_rates.rates[:BRANCH]
    trees = {tree.children for found in best_trees(rates, DEPTH, BUDGET)[1:] for tree in found}
    rows = [
        row("autoregressive", "", walked(chain(0))),
        *(row("chain", f"K{tokens}", walked(chain(tokens))) for tokens in CHAINS),
        fastest(row("tree", name(tree), walked(tree)) for tree in sorted(trees, key=lambda t: (len(t), t))),
        fastest(row("prompt_lookup", f"K{k}_n{n}", looked_up(k, n)) for k, n in PROMPT_LOOKUP),
        fastest(row("lookup", f"K{tokens}", looked_up(tokens)) for tokens in LOOKED_UP),
        fastest(row("oracle", f"K{tokens}", drafted_right(tokens)) for tokens in ORACLE),
    ]
    undrafted = rows[0]["tokens_per_second"]
    return [{**one, "speedup": round(one["tokens_per_second"] / undrafted, 4)} for one in rows]


def name(children: Children) -> str:
    """A static tree in short: levels D, most children of a node B, nodes besides the root N."""
    return f"D{len(_levels(children)) - 1}_B{max(map(len, children))}_N{len(children) - 1}"
