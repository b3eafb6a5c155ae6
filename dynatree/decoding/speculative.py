"""Speculative decoding with token trees (a chain is a tree of branch 1): one target forward a round, exact.

Here is one round. The base prefills, repeats it until every request is finished, and retires those that are. Which
drafter proposes and which policy chooses are plug-ins; this file knows neither's ways.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dynatree import plugins
from dynatree.costs.calibration import Calibration
from dynatree.decoding import Needs, RoundDecoder, may_lend
from dynatree.drafting import Drafter, DrawingDrafter
from dynatree.engine.backend import Feed
from dynatree.engine.compatibility import pair_up
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.batch_planner import BatchPlanner
from dynatree.generation.request import Request
from dynatree.generation.sampling import DraftNoise
from dynatree.generation.trace import Clock, Round
from dynatree.policies import PolicySettings
from dynatree.tree import TokenTree
from dynatree.verification import traversal
from dynatree.verification.agreement import verify

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """`policy` and `drafting` name plug-ins; `draft_vocabulary` false: the drafter ranges over all tokens.

    `draft_noise`: where tokens are drawn, the drafter model ranks them by the target's noise ("shared"), by noise of
    its own ("independent") or by none. `verification`: "agreement" gives the tokens of autoregressive sampling;
    "traversal" (verification/traversal.py), for independent draws, gives another text of the same distribution. All
    other keys are the policy's.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    policy: str  # a file of dynatree/policies; its keys are further keys
    drafting: str = "model"  # a file of dynatree/drafting
    draft_vocabulary: bool = True  # false: the drafter ranges over all tokens
    draft_noise: DraftNoise = "shared"  # of drawn text: what drafted tokens are ranked by
    verification: Literal["agreement", "traversal"] = "agreement"  # how a path is accepted

    def build_policy(self) -> PolicySettings:
        policy: PolicySettings = plugins.load("policies", self.policy).Policy(**(self.model_extra or {}))
        return policy


class Decoder(RoundDecoder):
    """Drafts a tree, verifies it in one forward, keeps the accepted path (method: SpecInfer, Miao et al. 2024)."""

    # What is told when a text is decoded: costs may be measured before.
    _untold: str | None = None

    @property
    def shared_noise(self) -> bool:
        """See `Decoder`."""
        return self._drawing is None

    def _round(self, active: Sequence[Request], clock: Clock) -> None:
        # 1. Draft a tree below each request's last token, one draft forward a level.
        with clock.phase("draft"):
            trees = self._drafter.propose(active, self._planner)
        # 2. Select the nodes worth verifying.
        with clock.phase("select"):
            trees = self._planner.select(active, trees)
        # 3. Verify all trees in one target forward: accepted paths, and the target's own next tokens.
        with clock.phase("verify"):
            verified = self._verify(active, trees)
        # 4. Accept: keep the paths in the caches of target and drafter, and learn from them.
        with clock.phase("cache"):
            for request, tree, (path, _) in zip(active, trees, verified, strict=True):
                if len(tree) > 1:
                    request.cache.keep(request.cache.length - len(tree), path)
                self._drafter.accept(request, tree, path)
            self._planner.observe(active, trees, [path for path, _ in verified])
        # 5. Commit: the paths and the target's own tokens, which are the next roots.
        for request, tree, (path, token) in zip(active, trees, verified, strict=True):
            nodes = path.tolist()
            emitted = [*[tree.nodes.tokens[node] for node in nodes[1:]], token]
            forwards = self._drafter.forwards(request)
            request.commit(
                Round(len(tree) - 1, tree.depth, len(nodes) - 1, emitted, forwards, recorded(tree), path=nodes)
            )

    def _verify(self, active: Sequence[Request], trees: Sequence[TokenTree]) -> list[tuple[Tensor, int]]:
        """The accepted path of each tree, and the token after it; all logits are freed on return."""
        feeds = []
        for request, tree in zip(active, trees, strict=True):
            alone = len(tree) == 1
            tokens = request.last if alone else tree.tokens
            feeds.append(Feed(tokens, request.cache, tree=None if alone else tree))
        rows = self._target.forward_batch(feeds, reads=self._reads, lent=may_lend(active))
        verified = []
        for request, tree, (logits, states) in zip(active, trees, rows, strict=True):
            path, token = self._accepted(request, tree, logits)
            if self._drafter.learns:
                self._drafter.learn(request, tree, path, logits)
            if len(states) > 1:
                # Most often the root alone, for which a slice is enough.
                states = states[:1] if len(path) == 1 else states[path]
            request.states = states
            verified.append((path, token))
        return verified

    def _accepted(self, request: Request, tree: TokenTree, logits: Tensor) -> tuple[Tensor, int]:
        """The path that `verification` accepts of `tree`, by the target's `logits` at its nodes, and the next token."""
        position = len(request.committed)
        if self._drawing and request.sampler:
            processed = request.process(logits, tree)
            return traversal.verify(tree, processed, self._drawing.draws(request), request.sampler, position)
        process = (lambda rows, nodes: request.process(rows, tree, nodes)) if request.processors.active else None
        return verify(tree, logits, request.sampler, position, process, request.ends)

    def _start(self, requests: Sequence[Request]) -> None:
        if self._untold:
            log.warning(self._untold)
            self._untold = None
        self._planner.start(requests)
        self._drafter.start(requests)

    def _retain(self, active: Sequence[Request]) -> None:
        self._planner.retain(active)
        self._drafter.retain(active)

    def __init__(
        self,
        target: LanguageModel,
        drafter: DraftModel | None = None,
        calibration: Calibration | None = None,
        **knobs: Any,
    ):
        checked = Settings(**knobs)
        if drafter is not None:
            self._reads = pair_up(target, drafter)
            drafter = drafter if checked.draft_vocabulary else drafter.over_all_tokens()
        self._target = target
        policy = checked.build_policy()
        if policy.needs_costs and calibration is None:
            policy = policy.without_costs()
            limits = ", ".join(f"{knob} {value}" for knob, value in policy.model_dump().items())
            self._untold = (
                f"not calibrated: what these models' forwards cost here in {target.format} is not known, so "
                f"trees grow by limits alone ({limits}); "
                "`dynatree calibrate`, or calibrate() in Python, measures it in about a minute"
            )
        self._planner = BatchPlanner(policy, calibration if policy.needs_costs else None)
        rates = calibration.step_rates if calibration and policy.uses_calibration else None
        made = plugins.load("drafting", checked.drafting).Drafter(drafter, rates, checked.draft_noise)
        self._drafter: Drafter = made
        self._drawing: DrawingDrafter | None = made if checked.verification == "traversal" else None

    @staticmethod
    def check(knobs: Mapping[str, Any]) -> None:
        checked = Settings(**knobs)
        policy, drafting = checked.build_policy(), plugins.load("drafting", checked.drafting)
        # A drafter that grows no levels has a tree of its own.
        if not policy.takes_lookup and not hasattr(drafting.Drafter, "grow"):
            raise ValueError(
                f"drafting: {checked.drafting}; the trees of policy {checked.policy} are made for a drafter model, "
                "write drafting: model"
            )
        if checked.draft_noise != "shared":
            _check_noise(checked, policy)
        if checked.verification == "traversal":
            _check_traversal(checked, policy)

    @staticmethod
    def needs(knobs: Mapping[str, Any]) -> Needs:
        checked = Settings(**knobs)
        drafter = plugins.load("drafting", checked.drafting).MODEL
        return Needs(drafter, checked.build_policy().needs_costs, reads=drafter != "unused")


def _check_noise(checked: Settings, policy: PolicySettings) -> None:
    """Raise ValueError where noise that the target does not share has nothing to rank, or is not allowed for."""
    if plugins.load("drafting", checked.drafting).MODEL == "unused":
        raise ValueError(
            f"draft_noise: {checked.draft_noise}; it is of a drafter model, and drafting: {checked.drafting} has none; "
            "leave draft_noise out, or write drafting: model"
        )
    if policy.uses_calibration:
        raise ValueError(
            f"draft_noise: {checked.draft_noise}; policy {checked.policy} goes by probabilities measured with "
            "shared noise; write calibrated: false, or draft_noise: shared"
        )


def _check_traversal(checked: Settings, policy: PolicySettings) -> None:
    """Raise ValueError where a tree is not drawn from the drafter model as traversal verification needs it."""
    able = [name for name in plugins.names("drafting") if hasattr(plugins.load("drafting", name).Drafter, "draws")]
    if checked.drafting not in able:
        raise ValueError(
            f"drafting: {checked.drafting}; verification: traversal is for tokens that are all drawn from a drafter "
            f"model, write drafting: {' or '.join(able)}"
        )
    if checked.draft_noise != "independent":
        raise ValueError(
            f"draft_noise: {checked.draft_noise}; verification: traversal is for tokens drawn independently of the "
            "target's, write draft_noise: independent"
        )
    if not policy.cuts_from_above:
        every = {name: plugins.load("policies", name).Policy for name in plugins.names("policies")}
        fit = [name for name, one in every.items() if one.cuts_from_above]
        raise ValueError(
            f"policy: {checked.policy}; verification: traversal is for trees whose nodes are kept whatever is drafted "
            f"below them, choose one of {', '.join(fit)}"
        )


def recorded(tree: TokenTree) -> dict[str, list[Any]]:
    """The tree as a round's record has it: node 0 is the root."""
    return {
        "tokens": tree.nodes.tokens,
        "parents": tree.nodes.parents,
        "log_probs": [round(value, 6) for value in tree.nodes.log_probs],
    }
