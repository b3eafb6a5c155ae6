"""What a drafter that reads states sees level by level, over whole rows of text at once.

Training-time test (EAGLE-3, Li et al., 2503.01840): level 1 has the target's states, a deeper one its own of the level
before, as in decoding, where the target has not been asked yet.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dynatree.distil.student import reading
from dynatree.engine.fusion import Fusion


def unrolled(drafter: PreTrainedModel, fusion: Fusion, tokens: Tensor, states: Tensor, levels: int) -> list[Tensor]:
    """Of each level its hidden states behind the final norm, [rows, n - level, width], at positions level..n-1.

    `tokens` [rows, n], the target's `states` [rows, n, reads * width]. The row at position i is token i with the state
    at i - 1: of level 1 the target's, fused; of level j what level j - 1 gave there. It sees the rows of level 1 up to
    position i - j + 1, as if they alone were committed, and behind them one of each level, its own draft.
    """
    length = tokens.shape[1]
    embedded = drafter.get_input_embeddings()(tokens)
    # In the dtype of the embedding, so that what layers add up is not rounded under autocast.
    state = fusion.fused(states[:, :-1].to(embedded.dtype)).to(embedded.dtype)
    cache, hidden = DynamicCache(), []
    # Rows are counted from the first of their level, so that those of one draft have the same number.
    draft = torch.eye(length, dtype=torch.bool, device=tokens.device)
    committed = torch.ones_like(draft).tril()
    with reading(drafter, [drafter.config.num_hidden_layers]) as read:
        for level in range(1, levels + 1):
            rows = length - level
            seen = [
                committed[:rows, : length - 1],
                *(draft[:rows, : length - deeper] for deeper in range(2, level + 1)),
            ]
            found = drafter.base_model(
                inputs_embeds=fusion.joined(embedded[:, level:], state),
                attention_mask=torch.cat(seen, dim=1)[None, None],
                position_ids=torch.arange(level, length, device=tokens.device)[None],
                cache=cache,
                use_cache=True,
            )
            hidden.append(found.last_hidden_state)
            state = read[0][:, :-1]
    return hidden
