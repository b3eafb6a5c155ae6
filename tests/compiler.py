"""Tests of our own operations' library, which takes a C++ compiler: with it, and by numpy alone."""

import pytest

from dynatree.engine.graph import kernels

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler")
BY_LIBRARY = "by our own library"
# What a fixture takes that has both.
BOTH_WAYS = ["by numpy", pytest.param(BY_LIBRARY, marks=needs_compiler)]
