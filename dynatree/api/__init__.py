"""The library from Python: a model in, text out. `from dynatree import DynaTree` gives what is here."""

from dynatree.api.dyna_tree import DynaTree
from dynatree.api.generation import Generation

__all__ = ["DynaTree", "Generation"]
