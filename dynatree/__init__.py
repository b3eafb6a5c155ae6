"""Dynamic token-tree speculative decoding of language models: exact, measured, reproducible."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynatree.api import DynaTree, Generation
    from dynatree.version import __version__

__all__ = ["DynaTree", "Generation", "__version__"]


def __getattr__(name: str) -> Any:
    # Found when they are asked for: torch and transformers take seconds to import.
    if name in ("DynaTree", "Generation"):
        from dynatree import api

        return getattr(api, name)
    if name == "__version__":
        from dynatree import version

        return version.__version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
