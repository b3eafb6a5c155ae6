"""Speculative decoding with token trees (a chain is a tree of branch 1): one target forward a round, greedy, exact.

Which drafter proposes and which policy chooses are plug-ins; this loop knows neither's ways.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dynatree import plugins
from dynatree.costs.calibration import Calibration
from dynatree.decoding import Batched, Needs
from dynatree.engine.eager.batch import Feed
from dynatree.engine.eager.kv_cache import KeyValueCache
from dynatree.engine.language_model import LanguageModel, check_pair
from dynatree.generation.batch_planner import Sharing
from dynatree.generation.logits_processors import Processors
from dynatree.generation.request import Request, rounds
from dynatree.generation.trace import Clock, OnCommit, Recorder, Trace
from dynatree.policies import Offer
from dynatree.tree import ROOT, TokenTree
from dynatree.verification.greedy import verify

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """`policy` and `drafting` name plug-ins; `draft_vocabulary` false: the drafter ranges over all tokens.

    All other keys are the policy's.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    policy: str
    drafting: str = "model"
    draft_vocabulary: bool = True

    def build_policy(self) -> Any:
        return plugins.load("policies", self.policy).Policy(**(self.model_extra or {}))


class Row(Request):
    """One request between its rounds: drafter, policy, and the tree of the round under way."""

    def start(
        self,
        drafter: Any,
        policy: Any,
        processors: Processors,
        calibration: Calibration | None,
        draft_cache: KeyValueCache,
    ) -> None:
        """What proposes and what chooses for this row alone."""
        self._drafter, self._policy, self._processors, self._draft_cache = drafter, policy, processors, draft_cache
        drafter.start(processors, draft_cache)
        policy.start(calibration)

    @property
    def caches(self) -> tuple[KeyValueCache, ...]:
        return self.cache, self._draft_cache

    def plant(self) -> None:
        """The round's tree before any draft forward: the root and what is proposed for free."""
        policy, drafter, committed = self._policy, self._drafter, self.committed
        # A round emits one token more than the path it accepts.
        self._tree, deepest = TokenTree.root(committed[-1]), min(policy.depth, self.wanted - 1)
        tokens, steps = drafter.free(committed, deepest)
        self._frontier = ROOT
        # Path probabilities fall along a chain, so what is kept is its beginning.
        if len(tokens) and (kept := int(policy.children(self._tree, steps.cumsum(0), ROOT[:0]).sum())):
            self._tree = self._tree.chain(tokens[:kept], steps[:kept])
        policy.begin(len(committed) - 1)
        self._levels = min(deepest, drafter.depth_limit(len(committed)))
        self.drafts = 0

    def expand(self) -> bool:
        """Choose the nodes to draft children of; False: the tree grows no further."""
        if self._levels == 0:
            return False
        self._levels -= 1
        self._frontier = self._policy.expand(self._tree, self._frontier)
        return len(self._frontier) > 0

    def offer(self) -> Offer | None:
        """What the policy expects of the level that it chose, if it reckons."""
        offer: Offer | None = self._policy.offer()
        return offer

    def reprice(self, calibration: Calibration | None) -> None:
        """Fewer rows share a forward than before."""
        self._policy.reprice(calibration)

    def ask(self) -> Feed:
        """What to feed the draft model for their children."""
        feed: Feed = self._drafter.ask(self._tree, self._frontier, self.text)
        return feed

    def grow(self, logits: Tensor) -> None:
        """Add the children that the policy keeps."""
        tree, frontier, policy = self._tree, self._frontier, self._policy
        tokens, steps = self._drafter.answer(logits, tree, frontier, policy.branch, self.text)
        parents = frontier.repeat_interleave(tokens.shape[1])
        log_probs = (tree.log_probs[frontier, None] + steps).flatten()
        keep = policy.children(tree, log_probs, frontier).nonzero().squeeze(1)
        self._tree = tree.graft(parents[keep], tokens.flatten()[keep], log_probs[keep])
        self._frontier = (self._tree.parents[:, None] == frontier).any(1).nonzero().squeeze(1)

    @property
    def nodes(self) -> int:
        """Of the tree, its root apart."""
        return len(self._tree) - 1

    def gains(self) -> Tensor | None:
        """What this row would save by the width of the batch's forward; None: its policy does not reckon."""
        gains: Tensor | None = self._policy.gains(self._tree)
        return gains

    def select(self, width: int | None) -> None:
        """Cut the tree to the nodes worth verifying, or to the `width` that the batch has room for."""
        policy, tree = self._policy, self._tree
        self._selected = policy.select(tree) if width is None else policy.fill(tree, width)
        self._tree = self._tree.subtree(self._selected)

    def feed(self) -> Feed:
        """What to feed the target: root and nodes behind the committed prefix."""
        self._prefix = self.cache.length
        mask = self._tree.attention_mask(self._prefix) if len(self._tree) > 1 else None
        return Feed(self._tree.tokens, self.cache, self._tree.positions(self._prefix), mask)

    def accept(self, logits: Tensor) -> None:
        """The path that the target's `logits` [n, vocabulary] agree with, and the target's own next token."""
        self._kept, self._bonus = verify(self._tree, self._processors.process(logits, self.text, self._tree))

    def keep(self) -> None:
        """Gather the accepted path in both caches."""
        self.cache.keep(self._prefix, self._kept)
        self._drafter.accept(self._selected[self._kept])
        self._policy.observe(self._tree, self._kept)

    def commit(self) -> None:
        """Emit the path and the next root."""
        tree, kept = self._tree, self._kept
        tokens = [*tree.tokens[kept[1:]].tolist(), self._bonus]
        self.extend(tokens)
        self.draft_forwards += self.drafts
        self.recorder.round(
            tokens,
            accepted=len(kept) - 1,
            drafted=len(tree) - 1,
            depth=tree.depth,
            draft_forwards=self.drafts,
            tree={
                "tokens": tree.tokens.tolist(),
                "parents": tree.parents.tolist(),
                "log_probs": [round(value, 6) for value in tree.log_probs.tolist()],
            },
            path=kept.tolist(),
        )


class Decoder(Batched):
    """Drafts a tree, verifies it in one forward, keeps the accepted path (method: SpecInfer, Miao et al. 2024)."""

    @staticmethod
    def check(knobs: dict[str, Any]) -> None:
        checked = Settings(**knobs)
        policy, drafting = checked.build_policy(), plugins.load("drafting", checked.drafting)
        if not policy.takes_lookup and drafting.MODEL != "required":
            raise ValueError(
                f"drafting: {checked.drafting}; the trees of policy {checked.policy} are made for a drafter model, "
                "write drafting: model"
            )

    @staticmethod
    def needs(knobs: dict[str, Any]) -> Needs:
        checked = Settings(**knobs)
        return Needs(plugins.load("drafting", checked.drafting).MODEL, checked.build_policy().needs_costs)

    def __init__(
        self,
        target: LanguageModel,
        drafter: LanguageModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        checked = Settings(**knobs)
        if drafter is not None:
            check_pair(target, drafter)
            drafter = drafter if checked.draft_vocabulary else drafter.over_all_tokens()
        self._target, self._model = target, drafter
        self._policy = checked.build_policy()
        if self._policy.needs_costs and calibration is None:
            self._policy = self._policy.without_costs()
            limits = ", ".join(f"{knob} {value}" for knob, value in self._policy.model_dump().items())
            log.warning("no cost table for policy %s: policy threshold takes over, %s", checked.policy, limits)
        steps = calibration.steps if calibration and self._policy.uses_calibration else None
        self._sharing = Sharing(calibration if self._policy.needs_costs else None)
        self._build_drafter = partial(plugins.load("drafting", checked.drafting).Drafter, drafter, steps)

    def _decode(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        eos_ids: frozenset[int],
        on_commit: OnCommit | None,
        clock: Clock | None,
        processors: Processors,
    ) -> list[Trace]:
        target = self._target
        for prompt in prompts:
            target.check_prompt(prompt, max_new_tokens)
        clock = clock or Clock()
        self._sharing.begin(len(prompts))
        sharing, calibration = len(prompts), self._sharing.of(len(prompts))
        caches = zip(KeyValueCache.together(len(prompts)), KeyValueCache.together(len(prompts)), strict=True)
        rows = []
        for prompt, (own, draft_cache) in zip(prompts, caches, strict=True):
            recorder = Recorder(eos_ids, on_commit, clock)
            row = Row(prompt, max_new_tokens, recorder, own)
            row.start(self._build_drafter(), self._policy.model_copy(deep=True), processors, calibration, draft_cache)
            rows.append(row)
        for going in rounds(target, rows, processors, clock):
            if len(going) < sharing:
                sharing = len(going)
                for row in going:
                    row.reprice(self._sharing.of(sharing))
            # 1. Draft below the roots.
            with clock.phase("draft"):
                self._draft(going)
            # 2. Select the nodes worth verifying.
            with clock.phase("select"):
                width = self._sharing.width(going)
                for row in going:
                    row.select(width)
            # 3. Verify roots and nodes in one target forward.
            with clock.phase("verify"):
                self._verify(going)
            # 4. Commit: gather the path in both caches, emit, and make the bonus token the next root.
            with clock.phase("cache"):
                for row in going:
                    row.keep()
            for row in going:
                row.commit()
        return [row.recorder.trace for row in rows]

    def _verify(self, rows: list[Row]) -> None:
        """The deepest path that agrees with the target, and its own next token; all logits are freed on return."""
        for row, logits in zip(rows, self._target.forward_batch([row.feed() for row in rows]), strict=True):
            row.accept(logits)

    def _draft(self, rows: list[Row]) -> None:
        """One forward a level, over the rows whose trees still grow."""
        for row in rows:
            row.plant()
        growing = rows
        while growing := self._sharing.drafting([row for row in growing if row.expand()], rows):
            assert self._model is not None, "without a model no level can be drafted"
            before = self._model.forwards
            answers = self._model.draft_batch([row.ask() for row in growing])
            for row, logits in zip(growing, answers, strict=True):
                row.grow(logits)
                row.drafts += self._model.forwards - before
