"""How a drafter is made: every knob of the training, checked. Knows no model and no text."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dynatree.config import Knobs


class ContextLabels(Knobs):
    """A network that says which of a token's successors fit the target's state (engine/context.py)."""

    width: int = Field(256, ge=1)  # of its hidden state
    rank: int = Field(128, ge=1)  # of what it says of successors
    levels: int = Field(2, ge=1)  # of a tree that it is trained for
    passes: int = Field(8, ge=1)  # over all labels
    learning_rate: float = Field(3e-3, gt=0)  # the largest; it falls to 0


class Labels(Knobs):
    """The target's own probabilities, kept on disk: over tuning text, and over what the target writes itself."""

    tokens: int = Field(ge=1)  # positions to label, at least
    seconds: float | None = Field(None, gt=0)  # of labelling, at most; null: tokens alone
    top: int = Field(32, ge=1)  # likeliest tokens kept of each position
    text_share: float = Field(0.3, ge=0, le=1)  # of the shards; the others hold continuations
    dialogue_share: float = Field(0.0, ge=0, le=1)  # likewise: dialogues that a chat model writes by itself
    rows: int = Field(64, ge=1)  # of a shard, written together
    prompt_tokens: int = Field(128, ge=4)  # longest; the shortest is a quarter
    new_tokens: int = Field(80, ge=1)  # of each continuation, at most
    temperatures: tuple[float, ...] = Field((1.0, 1.0, 0.7, 0.0), min_length=1)  # of a shard's rows in turn; 0: greedy
    penalties: tuple[float, ...] = Field((1.0,), min_length=1)  # repetition penalties, likewise; 1: none
    passes: int = Field(2, ge=1)  # over all labels
    successors: int = Field(0, ge=0)  # of each token in a table made of the labels; 0: no table
    context: ContextLabels | None = None  # what goes with that table; None: it goes by the token alone
    argmax_weight: float = Field(0.25, ge=0, le=1)  # of the label moved to the target's greedy choice

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if wrong := [penalty for penalty in self.penalties if not penalty > 0]:
            raise ValueError(f"labels.penalties: {wrong[0]}; choose more than 0, 1 for none")
        if self.successors > self.top:
            raise ValueError(f"labels.successors: {self.successors}; labels say {self.top} of each token (labels.top)")
        if self.context and not self.successors:
            raise ValueError("labels.context: it goes with a table of successors; give labels.successors, 32 say")
        if self.text_share + self.dialogue_share > 1:
            raise ValueError(f"labels.dialogue_share: {self.dialogue_share}; with text_share {self.text_share} above 1")
        return self


class Recipe(Knobs):
    """Train copies of some layers of the target: on text (`tokens`), then on the target's probabilities (`labels`)."""

    kind: Literal["distil"] = "distil"
    layers: tuple[int, ...] = Field(min_length=1)  # of the target, copied
    reads: tuple[int, ...] = ()  # the target's states behind so many of its layers go in; none: tokens alone
    levels: int = Field(3, ge=1)  # that a drafter which reads is unrolled for; the others have one
    norm_scale: float = Field(gt=0)  # of the copied final norm, at the start
    vocabulary: int = Field(ge=2)  # tokens that are drafted, chosen by frequency
    order_prior: float = Field(0.5, ge=0, le=1)  # how much of the frequency comes from the tokenizer's own order
    negatives: int = Field(ge=0)  # further tokens, drawn for each batch
    mix: dict[str, float] = Field(default_factory=dict)  # weight of each data set; 1 where not named
    tokens: int = Field(ge=0)  # of text with its own next tokens as labels; 0 where states are read
    labels: Labels | None = None  # the target's probabilities to train on; null: text alone
    minutes: float | None = Field(None, gt=0)  # of training, its two parts by their tokens; None: as long as it takes
    batch: int = Field(ge=1)  # rows of a training step
    length: int = Field(ge=4)  # tokens of a row, and the most that the drafter is fed
    learning_rate: float = Field(gt=0)  # the largest; it falls to 0
    repeat_share: float = Field(ge=0, le=1)  # of the text batches, in which a random span comes twice
    held_out_share: float = Field(0.05, gt=0, lt=1)  # of the tuning documents, for progress alone
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the target's forward and of the training's products

    @property
    def tabled(self) -> bool:
        """Whether what it makes has a table of what the target puts after each token."""
        return self.labels is not None and self.labels.successors > 0

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for name, weight in self.mix.items():
            if weight < 0:
                raise ValueError(f"mix: {name} has weight {weight}; choose 0 or more")
        return self

    @model_validator(mode="after")
    def _has_a_phase(self) -> Self:
        if self.reads and (self.tokens or self.labels is None):
            raise ValueError("reads: the target's states come with its labels; give labels, and tokens: 0")
        if not self.reads and not self.tokens:
            raise ValueError("tokens: 0; give at least 1 (0 is for a drafter that reads states)")
        if self.reads and (min(self.reads) < 1 or list(self.reads) != sorted(set(self.reads))):
            raise ValueError(f"reads: {list(self.reads)}; give numbers of layers, ascending, from 1 on")
        if self.reads and self.levels > self.length // 2:
            raise ValueError(f"levels: {self.levels}; give at most half of length, {self.length // 2}")
        return self
