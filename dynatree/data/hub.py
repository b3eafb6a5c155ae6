"""Reaching the model and data hub, or saying quickly that it cannot be reached; its caches serve without it."""

import importlib.util
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dynatree.errors import UserError

_PROBE_SECONDS = 8.0  # the hub's own client would retry for much longer before it gives up

_NO_HUB = frozenset({403, 407, 500, 502, 503, 504})


@contextmanager
def access(what: str, local_way: str) -> Iterator[None]:
    """Load `what` from the hub inside; from the caches alone if the hub does not answer.

    Raises UserError, naming `local_way`, if it cannot be had.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    reason = _unreachable(endpoint)
    try:
        with _offline(reason is not None):
            yield
    except Exception as error:
        # The clients raise OSError, ValueError and their own kinds alike; each means that there is no such thing here.
        why = f"the hub {endpoint} is not reachable ({reason}) and it is not in the cache" if reason else str(error)
        raise UserError(f"{what}: {why}. A local copy serves as well: {local_way}") from error


def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer, or None if it does."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []

    def probe() -> None:
        request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "dynatree"})
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS / 2):
                answer.append(None)
        except urllib.error.HTTPError as error:
            # A proxy's refusal is no answer of the hub; any other status is for the client to judge.
            answer.append(f"HTTP {error.code} {error.reason}" if error.code in _NO_HUB else None)
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)))

    # A thread, because no timeout bounds the look-up of the host's name.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answer[0] if answer else f"no answer within {_PROBE_SECONDS:g} s"


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Have the hub's client and `datasets` look in their caches only; they read the environment once, at import."""
    import huggingface_hub.constants

    places: list[Any] = [huggingface_hub.constants]
    # A model is had without it: it is of the extra `workflow`.
    if importlib.util.find_spec("datasets"):
        import datasets.config

        places.append(datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = wanted or value
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
