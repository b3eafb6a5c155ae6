"""How often the clock of a timed request stops for autoregressive steps (clock.py). Imports nothing."""

# Seconds of a request from one sample to the next, but at least that many times what a sample takes; and the steps of
# a sample, of which the first does not count: it still feels the forward before it.
SAMPLE_EVERY, SAMPLE_REST, SAMPLE_STEPS = 0.4, 6, 4


def pause(step: float) -> float:
    """Seconds from one sample to the next where an autoregressive step takes `step` seconds."""
    return max(SAMPLE_EVERY, SAMPLE_REST * SAMPLE_STEPS * step)
