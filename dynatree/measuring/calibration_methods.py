"""What calibration decodes by. Imports no torch: the workflow measures anew after a change of their plug-ins."""

from typing import Any

from dynatree.settings import PLUGGED

# How texts are continued, whose tokens are the target's whichever way they are decoded.
CONTINUING: dict[str, Any] = {"policy": "chain", "drafting": "lookup", "draft_tokens": 6}
# What decoding is watched with: a level in each round, so that the drafter never lacks more than two tokens.
DECODING: dict[str, Any] = {"policy": "chain", "drafting": "model", "draft_tokens": 1}
# By what nodes are looked for: the default method, which verifies those that pay.
LOOKING: dict[str, Any] = {
    "policy": "cost_aware",
    "drafting": "hybrid",
    "depth": 63,
    "branch": 4,
    "threshold": 0.01,
    "budget": 63,
}
# The plug-ins that these are made of, each by its folder.
PLUGS = sorted(
    {f"{folder}.{knobs[knob]}" for knobs in (CONTINUING, DECODING, LOOKING) for knob, folder in PLUGGED.items()}
)
