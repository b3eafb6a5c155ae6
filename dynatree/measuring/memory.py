"""What one method holds in memory, measured in a process that does nothing else: weights, caches, high-water marks.

The caches are watched from outside, so that no timed run carries a counter. Knows no table and no figure.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dynatree.data.prompts import Prompt
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.language_model import LanguageModel
from dynatree.generation.options import GenerationOptions
from dynatree.measuring import loading
from dynatree.measuring.watermark import HighWater

MIB = 2**20


class CachePeaks:
    """The largest keys and values that a model's forwards left behind, in bytes: `used` slots, `allocated` storage."""

    def __init__(self) -> None:
        self.used = self.allocated = 0

    def see(self, sizes: Callable[[], tuple[int, int]] | None) -> None:
        """Behind a forward the cache holds committed tokens and the tree, and nothing is cropped yet."""
        if sizes is not None:
            used, allocated = sizes()
            self.used, self.allocated = max(self.used, used), max(self.allocated, allocated)


@contextmanager
def watched(model: LanguageModel | DraftModel) -> Iterator[CachePeaks]:
    """Watch the caches of a model's forwards, whichever decoder calls them."""
    peaks = CachePeaks()
    with model.watched(lambda: None, peaks.see):
        yield peaks


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
    weights = target.weights()
    sizes = {
        "load_peak": load_peak,
        "loaded": loaded,
        "peak": water.peak(),
        "weights": sum(weights.values()),
        "cache_used": caches.used,
        "cache_allocated": caches.allocated,
        # Without those that it shares.
        "drafter_weights": sum((weights | drafter.weights()).values()) - sum(weights.values()) if drafter else 0,
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
