"""When an output ends: after an end token, or where a stopping criterion says so. Knows no decoder and no model."""

from collections.abc import Sequence

import torch

from dynatree.generation.options import GenerationOptions


class Ending:
    """The end of the output after `prompt`; `padding`: tokens before the prompt that stopping criteria see, too.

    `reason`: "eos" or "stop" once it was found, "length" until then.
    """

    def __init__(self, prompt: Sequence[int], options: GenerationOptions, padding: Sequence[int] = ()):
        self._ids, self._criteria = options.eos_token_id, options.stopping_criteria
        # Copied as the output grows; without criteria nobody looks at it.
        self._text = [*padding, *prompt] if self._criteria else []
        self.reason = "length"

    def after(self, tokens: Sequence[int]) -> int | None:
        """How many of the further `tokens` belong to the output, if it ends among them."""
        for place, token in enumerate(tokens, start=1):
            if token in self._ids:
                self.reason = "eos"
                return place
            if self._criteria:
                self._text.append(token)
                text = torch.tensor([self._text])
                if any(bool(torch.as_tensor(stop(text, None)).all()) for stop in self._criteria):
                    self.reason = "stop"
                    return place
        return None
