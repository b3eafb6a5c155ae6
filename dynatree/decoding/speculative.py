"""Speculative decoding with token trees (a chain is a tree of branch 1): one target forward a round, greedy, exact.

Which drafter proposes and which policy chooses are plug-ins; this loop knows neither's ways.
"""

import logging
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from dynatree import plugins
from dynatree.cache import KeyValueCache
from dynatree.calibration import Calibration
from dynatree.decoding import Needs
from dynatree.model import LanguageModel, check_pair
from dynatree.processors import PLAIN, Processors
from dynatree.trace import Clock, OnCommit, Recorder, Trace
from dynatree.tree import TokenTree
from dynatree.verification.greedy import greedy_tokens, verify

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """`policy` and `drafting` name plug-ins; all other keys are the policy's."""

    model_config = ConfigDict(extra="allow", frozen=True)
    policy: str
    drafting: str = "model"

    def build_policy(self) -> Any:
        return plugins.load("policies", self.policy).Policy(**(self.model_extra or {}))


class Decoder:
    """Drafts a tree, verifies it in one forward, keeps the accepted path (method: SpecInfer, Miao et al. 2024)."""

    @staticmethod
    def check(knobs: dict[str, Any]) -> None:
        checked = Settings(**knobs)
        checked.build_policy()
        plugins.load("drafting", checked.drafting)

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
        self._target = target
        self._policy = checked.build_policy()
        self._calibration = calibration
        if self._policy.needs_costs and calibration is None:
            self._policy = self._policy.without_costs()
            limits = ", ".join(f"{knob} {value}" for knob, value in self._policy.model_dump().items())
            log.warning("no cost table for policy %s: policy threshold takes over, %s", checked.policy, limits)
        steps = calibration.steps if calibration and self._policy.uses_calibration else None
        self._drafter = plugins.load("drafting", checked.drafting).Drafter(drafter, steps)

    def decode(
        self,
        prompt: list[int],
        max_new_tokens: int,
        eos_ids: frozenset[int] = frozenset(),
        on_commit: OnCommit | None = None,
        clock: Clock | None = None,
        processors: Processors = PLAIN,
    ) -> Trace:
        """Exactly what greedy `autoregressive` gives for the same arguments, in fewer target forwards."""
        target, drafter, policy = self._target, self._drafter, self._policy
        target.check_prompt(prompt, max_new_tokens)
        target_forwards, draft_forwards = target.forwards, drafter.forwards
        recorder = Recorder(eos_ids, on_commit, clock)
        phase = recorder.clock.phase
        cache = KeyValueCache()
        drafter.start(processors)
        policy.start(self._calibration)

        with phase("prefill"):
            logits = target.forward(torch.tensor(prompt), cache, last_only=True)
            root = int(greedy_tokens(processors.process(logits, prompt)))
        recorder.first([root])
        committed = [*prompt, root]

        while not recorder.finished and (wanted := max_new_tokens - len(recorder.trace.output)) > 0:
            forwards_before = drafter.forwards
            # 1. Draft below the root; a round emits one token more than the path it accepts.
            with phase("draft"):
                drafted = self._draft(committed, wanted - 1)
            # 2. Select the nodes worth verifying.
            with phase("select"):
                selected = policy.select(drafted)
                tree = drafted.subtree(selected)
            # 3. Verify root and nodes in one target forward.
            with phase("verify"):
                prefix = cache.length
                mask = tree.attention_mask(prefix) if len(tree) > 1 else None
                logits = target.forward(tree.tokens, cache, tree.positions(prefix), mask)
                # 4. Accept the deepest path that agrees with the target, plus the target's own next token.
                kept, root = verify(tree, processors.process(logits, committed, tree))
            # 5. Commit: gather the path in both caches, emit, and make the bonus token the next root.
            with phase("cache"):
                cache.keep(prefix, kept)
                drafter.accept(selected[kept])
                policy.observe(tree, kept)
            tokens = [*tree.tokens[kept[1:]].tolist(), root]
            committed += tokens
            recorder.round(
                tokens,
                accepted=len(kept) - 1,
                drafted=len(tree) - 1,
                depth=tree.depth,
                draft_forwards=drafter.forwards - forwards_before,
                tree={
                    "tokens": tree.tokens.tolist(),
                    "parents": tree.parents.tolist(),
                    "log_probs": [round(value, 6) for value in tree.log_probs.tolist()],
                },
                path=kept.tolist(),
            )
        return recorder.close(target.forwards - target_forwards, drafter.forwards - draft_forwards)

    def _draft(self, committed: list[int], depth_limit: int) -> TokenTree:
        policy, drafter = self._policy, self._drafter
        tree, deepest = TokenTree.root(committed[-1]), min(policy.depth, depth_limit)
        tokens, steps = drafter.free(committed, deepest)
        frontier = torch.zeros(1, dtype=torch.long)
        keep = policy.children(tree, steps.cumsum(0), frontier[:0])
        if keep.any():
            # Path probabilities fall along a chain, so what is kept is its beginning.
            tree = tree.chain(tokens[keep], steps[keep])
        policy.begin(len(committed) - 1)
        for _ in range(min(deepest, drafter.depth_limit(len(committed)))):
            frontier = policy.expand(tree, frontier)
            if not len(frontier):
                break
            tokens, steps = drafter.propose(tree, frontier, policy.branch, committed)
            parents = frontier.repeat_interleave(tokens.shape[1])
            log_probs = (tree.log_probs[frontier, None] + steps).flatten()
            keep = policy.children(tree, log_probs, frontier).nonzero().squeeze(1)
            tree = tree.graft(parents[keep], tokens.flatten()[keep], log_probs[keep])
            frontier = (tree.parents[:, None] == frontier).any(1).nonzero().squeeze(1)
        return tree
