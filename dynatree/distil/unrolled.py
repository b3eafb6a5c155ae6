"""What a drafter that reads states sees level by level, over whole rows of text at once.

Training-time test (EAGLE-3, Li et al., 2503.01840): level 1 has the target's states, a deeper one its own of the level
before, as in decoding, where the target has not been asked yet.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dynatree.engine.draft_model import DraftModel
from dynatree.engine.eager.layers import reading
from dynatree.engine.fusion import Fusion
from dynatree.engine.language_model import LanguageModel


def unrolled(drafter: PreTrainedModel, fusion: Fusion, tokens: Tensor, states: Tensor, levels: int) -> list[Tensor]:
    """Of each level its hidden states behind the final norm, [rows, n - level, width], at positions level..n-1.

    `tokens` [rows, n], the target's `states` [rows, n, reads * width]. The row at position i is token i with the state
    at i - 1: of level 1 the target's, fused; of level j what level j - 1 gave there. It sees the rows of level 1 up to
    position i - j + 1, as if they alone were committed, and behind them one of each level, its own draft.
    """
    length = tokens.shape[1]
    embedded = drafter.get_input_embeddings()(tokens)
    # The fusion's own dtype, also under autocast: what layers add up is not rounded.
    dtype = fusion.fuse.weight.dtype
    state = fusion.fused(states[:, :-1].to(dtype)).to(dtype)
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
                inputs_embeds=fusion.joined(embedded[:, level:].to(dtype), state).to(embedded.dtype),
                attention_mask=torch.cat(seen, dim=1)[None, None],
                position_ids=torch.arange(level, length, device=tokens.device)[None],
                cache=cache,
                use_cache=True,
            )
            hidden.append(found.last_hidden_state)
            state = read[0][:, :-1].to(dtype)
    return hidden


@torch.inference_mode()
def drafted(drafter: DraftModel, target: LanguageModel, tokens: Tensor, levels: int) -> list[Tensor]:
    """What `drafter` drafts along `tokens` [n]: of each level logits [n - level, v] over its vocabulary, in float32.

    Those of level j stand at positions j..n-1: each is the last of a draft of j tokens, all before it right. The window
    is left out. Of a drafter that reads no states, to which a draft is text as any other, logits [n, v] alone.
    """
    model, ids = drafter.language_model.model, tokens[None].to(drafter.device)
    vocabulary = slice(None) if drafter.vocabulary is None else drafter.vocabulary
    if drafter.fusion is None:
        return [model(input_ids=ids, use_cache=False).logits[0][:, vocabulary].float()]
    states = target.states(tokens, drafter.reads).to(drafter.device)
    # Where the model is: what its forwards read by is a copy.
    hidden = unrolled(model, drafter.fusion.to(drafter.device), ids, states[None], levels)
    return [model.get_output_embeddings()(one[0])[:, vocabulary].float() for one in hidden]
