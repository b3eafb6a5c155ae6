"""A table of what a target puts after each token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dynatree.engine import successors
from dynatree.errors import UserError

# After 0 came 1 (0.9) and 2 (0.1), then 2 (0.6) and 1 (0.4); after 3 came 0.
TOKENS = torch.tensor([0, 0, 3])
IDS = torch.tensor([[1, 2], [2, 1], [0, 1]])
PROBABILITIES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])


def test_a_row_is_the_mean_over_the_places_of_its_token() -> None:
    """Guards what trees are grown from: means of the target's own probabilities, drawn to those of all places."""
    table = successors.counted(TOKENS, IDS, PROBABILITIES, 5, 2)
    everywhere = {0: 0.8 / 3, 1: 1.5 / 3, 2: 0.7 / 3}
    assert table.ids.tolist() == [[1, 2], [1, 0], [1, 0], [0, 1], [1, 0]]
    expected = [(1.3 + 2 * everywhere[1]) / 4, (0.7 + 2 * everywhere[2]) / 4]
    assert np.exp(table.log_probs[0]) == pytest.approx(expected)
    assert np.exp(table.log_probs[3]) == pytest.approx([(0.8 + 2 * everywhere[0]) / 3, (0.2 + 2 * everywhere[1]) / 3])
    # Tokens that were not seen.
    for token in (1, 2, 4):
        assert np.exp(table.log_probs[token]) == pytest.approx([everywhere[1], everywhere[0]])


def test_fewer_than_are_kept_are_filled_with_what_never_comes() -> None:
    """Guards against a row that proposes a token twice as likely as it is, or none."""
    table = successors.counted(TOKENS, IDS, PROBABILITIES, 5, 4)
    assert table.ids.shape == (5, 4)
    assert (table.log_probs[0, 2:] == successors.NEVER).all() and np.isfinite(table.log_probs).all()


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Guards against a table of other tokens behind half precision and short ids; and against a missing one."""
    path = tmp_path / "table.safetensors"
    assert successors.load(path, 5) is None
    table = successors.counted(TOKENS, IDS, PROBABILITIES, 5, 4)
    successors.save(table, path)
    read = successors.load(path, 5)
    assert read is not None and read.ids.tolist() == table.ids.tolist()
    assert read.log_probs == pytest.approx(table.log_probs, abs=2e-3)


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        (
            {"ids": np.zeros((4, 2), np.uint16), "log_probs": np.zeros((4, 2), np.float16)},
            "of 4 tokens, .* has 5",
        ),
        ({"ids": np.full((5, 2), 5, np.uint16), "log_probs": np.zeros((5, 2), np.float16)}, "of 5 tokens"),
        ({"ids": np.zeros((5, 2), np.uint16), "log_probs": np.zeros((5, 3), np.float16)}, "expected two of one shape"),
        ({"ids": np.zeros((5, 2), np.uint16)}, "log_probs"),
    ],
)
def test_one_that_does_not_fit_is_refused(tmp_path: Path, parts: dict[str, np.ndarray], wrong: str) -> None:
    """Guards against drafts out of a table of another model."""
    save_file(parts, tmp_path / "table.safetensors")
    with pytest.raises(UserError, match=wrong):
        successors.load(tmp_path / "table.safetensors", 5)
