"""What one generation gave, for people and programs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynatree.errors import UserError
from dynatree.generation.trace import Trace

if TYPE_CHECKING:
    from altair import TopLevelMixin

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, repr=False)
class Generation:
    """The output after one prompt.

    `text`: None where the model has no tokenizer. `tokens`: the new ids. `rounds`: target forwards after the prefill.
    `tokens_per_round`: after the prefill, the target's own included. `finish_reason`: "length", "eos" or "stop".
    `prompt_tokens`: how many came before. `decode`: token ids to text.
    """

    text: str | None
    tokens: list[int]
    rounds: int
    tokens_per_round: float
    seconds: float
    finish_reason: str
    trace: Trace
    prompt_tokens: int
    method: str
    decode: Decode

    def __repr__(self) -> str:
        shown = self.text if self.text is not None else " ".join(map(str, self.tokens))
        shown = repr(shown if len(shown) <= 60 else shown[:59] + "…")
        return (
            f"Generation({shown}, {len(self.tokens)} tokens in {self.rounds} rounds, "
            f"{self.tokens_per_round:.1f} per round, {self.seconds:.2f} s, {self.finish_reason})"
        )

    def tree(self, round: int = 0) -> "TopLevelMixin":
        """The picture of the tree that the target verified in that round, its accepted path and the attention mask.

        An Altair chart, which a notebook shows. Raises UserError for a round that there is not, a method that grows no
        trees, and where drawing is not installed.
        """
        try:
            from dynatree.figures import tree_attention_mask as figure
            from dynatree.figures.shared import theme
        except ImportError as error:
            raise UserError(
                f"tree: drawing needs a package more ({error}); pip install '.[workflow]' in the checkout"
            ) from error
        title = f"{theme.display(self.method)}, round {round}"
        return figure.drawing([(self.nodes(round), title)], theme.colour(self.method))

    def nodes(self, round: int) -> list[dict[str, Any]]:
        """The nodes of that tree, a row each, the root first.

        Keys are those of the table `nodes`: `node` and `parent` (their numbers), `depth`, `rank` among its siblings (0:
        the likeliest), `token`, `text`, `path_log_probability`, `accepted`, and `hit`, which is `accepted` where the
        parent was accepted, and else None.

        Raises UserError for a round that there is not, and a method that grows no trees.
        """
        from dynatree.tables.rounds import node_rows

        if not 0 <= round < len(self.trace.rounds):
            raise UserError(f"round: no {round}; this output has {len(self.trace.rounds)}, counted from 0")
        chosen = self.trace.rounds[round]
        if chosen.tree is None:
            raise UserError(f"tree: the method {self.method} grows none")
        return node_rows({"tree": chosen.tree, "path": chosen.path}, self.decode)


def generation(trace: Trace, prompt_tokens: int, method: str, text: str | None, decode: Decode | None) -> Generation:
    """The trace as a Generation; `text` and `decode` (token ids to text): None without a tokenizer."""
    later = len(trace.output) - trace.first
    return Generation(
        text=text,
        tokens=trace.output,
        rounds=len(trace.rounds),
        tokens_per_round=later / len(trace.rounds) if trace.rounds else 0.0,
        seconds=trace.seconds,
        finish_reason=trace.finish_reason,
        trace=trace,
        prompt_tokens=prompt_tokens,
        method=method,
        decode=decode or (lambda ids: " ".join(map(str, ids))),
    )
