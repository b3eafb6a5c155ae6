"""What one method holds in memory, measured in a process that does nothing else: weights, caches, high-water marks.

Hooks on the models see the caches, so that no timed run carries a counter. Knows no table and no figure.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dynatree.data.prompts import Prompt
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.kv_cache import state_bytes
from dynatree.engine.eager.packing import weight_bytes
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import loading
from dynatree.measuring.watermark import HighWater

MIB = 2**20


class CachePeaks:
    """The largest keys and values that a model's forwards left behind, in bytes: `used` slots, `allocated` storage."""

    def __init__(self) -> None:
        self.used = self.allocated = 0

    def see(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """Forward hook: after a forward the cache holds committed tokens and the tree, and nothing is cropped yet."""
        used, allocated = state_bytes(output["cache"])
        self.used, self.allocated = max(self.used, used), max(self.allocated, allocated)


@contextmanager
def watched(model: LanguageModel | DraftModel) -> Iterator[CachePeaks]:
    """Watch the caches of a model's forwards, whichever decoder calls them."""
    peaks = CachePeaks()
    # Drafting over a vocabulary of its own goes past the causal LM to the model below it.
    hook = model.base.register_forward_hook(peaks.see)
    try:
        yield peaks
    finally:
        hook.remove()


def record(
    folders: dict[str, Path],
    calibration: Path | None,
    decoder: str,
    knobs: dict[str, Any],
    dtype: str,
    device: str,
    prompt: Prompt,
    options: GenerationOptions,
) -> dict[str, Any]:
    """Load as `loading.load` does, decode one prompt: the columns of the table `memory`, and `output_ids`.

    Only in a fresh process is the load's peak that of this method. Raises UserError where peaks cannot be told.
    """
    (target, drafter), method = loading.load(folders, calibration, decoder, knobs, dtype, device)
    water = HighWater(target.device)
    load_peak = water.peak()
    water.reset()
    loaded = water.held()
    with ExitStack() as hooks:
        caches = hooks.enter_context(watched(target))
        drafter_caches = hooks.enter_context(watched(drafter)) if drafter else CachePeaks()
        trace = method.decode(prompt.ids, options)
    weights = weight_bytes(*target.parts)
    sizes = {
        "load_peak": load_peak,
        "loaded": loaded,
        "peak": water.peak(),
        "weights": weights,
        "cache_used": caches.used,
        "cache_allocated": caches.allocated,
        # Without those that it shares.
        "drafter_weights": weight_bytes(*target.parts, *drafter.parts) - weights if drafter else 0,
        "drafter_cache_used": drafter_caches.used,
        "drafter_cache_allocated": drafter_caches.allocated,
    }
    return {
        "prompt_id": prompt.prompt_id,
        "prompt_tokens": len(prompt.ids),
        "output_tokens": len(trace.output),
        "output_ids": trace.output,
        **{f"{name}_mib": size / MIB for name, size in sizes.items()},
    }
