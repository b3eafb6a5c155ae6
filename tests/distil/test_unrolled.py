"""The unrolled levels are those of decoding: each position's draft on its own, behind text that the target has read."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynatree.distil.student import add_fusion, shrink
from dynatree.distil.unrolled import drafted as unrolled_text
from dynatree.distil.unrolled import unrolled
from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.layers import reading
from tests import models

LEVELS, LENGTH, READS = 3, 9, (1, 2)


@pytest.fixture(
    params=[("llama", (0,)), ("llama", (0, 1)), ("gpt_neox", (1,)), ("qwen3", (0,))],
    ids=["llama", "deep", "gpt_neox", "qwen3"],
)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target and a drafter that reads it, all of whose weights are random."""
    architecture, layers = request.param
    target = models.random_model(architecture, dtype=torch.float32)
    drafter = shrink(target, layers, 0.5).eval()
    add_fusion(drafter, target, READS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in drafter.fusion.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5)
    return target, drafter


@torch.inference_mode()
def drafted(drafter: PreTrainedModel, tokens: Tensor, states: Tensor, last: int) -> list[Tensor]:
    """What each level gives for one draft of `tokens` [n] behind position `last`, row by row and without a cache.

    The target has computed positions up to `last` - 1; level j drafts behind tokens 0..last + j - 1.
    """
    embedded = drafter.get_input_embeddings()(tokens)
    rows = [drafter.fusion.joined(embedded[i], drafter.fusion.fused(states[i - 1])) for i in range(1, last + 1)]
    found = []
    for level in range(1, LEVELS + 1):
        places = torch.arange(1, len(rows) + 1)[None]
        with reading(drafter, [drafter.config.num_hidden_layers]) as read:
            given = drafter.base_model(inputs_embeds=torch.stack(rows)[None], position_ids=places, use_cache=False)
        found.append(given.last_hidden_state[0, -1])
        if level < LEVELS:
            rows.append(drafter.fusion.joined(embedded[last + level], read[0][0, -1]))
    return found


def test_every_level_is_what_decoding_drafts(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Guards against rows that see what decoding has not: later text, true states of drafted text, other drafts."""
    target, drafter = pair
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) * 7 % models.VOCABULARY
    with torch.inference_mode(), reading(target, READS) as read:
        target(tokens)
        states = torch.cat(read, dim=-1)
        hidden = unrolled(drafter, drafter.fusion, tokens, states, LEVELS)
    assert [part.shape[1] for part in hidden] == [LENGTH - level for level in range(1, LEVELS + 1)]
    for row in range(2):
        for last in range(1, LENGTH - LEVELS + 1):
            for level, one in enumerate(drafted(drafter, tokens[row], states[row], last), 1):
                # Level j of this draft stands at position last + j - 1, the (last - 1)th of its rows.
                torch.testing.assert_close(hidden[level - 1][row, last - 1], one, atol=2e-5, rtol=1e-4)


def test_a_draft_is_made_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a report on a GPU that fuses states by weights that stayed on the CPU."""
    target = models.language_model()
    drafter = models.reading(target)
    monkeypatch.setattr(DraftModel, "device", torch.device("meta"))
    drafter.language_model.model.to("meta")
    (logits,) = unrolled_text(drafter, target, torch.arange(LENGTH), 1)
    assert logits.device.type == "meta" and logits.shape == (LENGTH - 1, models.VOCABULARY)


def test_states_are_read_behind_the_layers_named(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Guards against states of the layer before, or behind the final norm."""
    target, _ = pair
    tokens = torch.arange(LENGTH)[None]
    count = target.config.num_hidden_layers
    with torch.inference_mode(), reading(target, range(1, count + 1)) as read:
        found = target.base_model(tokens, output_hidden_states=True)
    assert all(torch.equal(one, other) for one, other in zip(read[:-1], found.hidden_states[1:-1], strict=True))
    norm = target.base_model.norm if hasattr(target.base_model, "norm") else target.base_model.final_layer_norm
    with torch.inference_mode():
        target(tokens + 1)  # nothing is read any more
        assert torch.equal(norm(read[-1]), found.last_hidden_state)
