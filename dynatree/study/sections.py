"""The sections of params.yaml, a class each, and the whole of it. Imports no torch.

A class judges its own keys; what one section says of another is judged in consistency.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from dynatree.config import MOST_THREADS, QUANTISED, Knobs
from dynatree.study.scales import DataType, Device, Scale, from_one, once


class Method(BaseModel):
    """A decoder and its knobs. `reads`: it drafts by the pair's `features`, where the pair has them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    decoder: str  # a file of dynatree/decoding; its knobs are further keys
    reads: bool = False  # draft by the pair's `features`, where it has them

    @property
    def knobs(self) -> dict[str, Any]:
        """Everything but the decoder's name and the drafter."""
        return dict(self.model_extra or {})


class Variant(BaseModel):
    """A method of an experiment's own: a decoder and its knobs, or one of `methods` but for the keys that are given.

    `like`: the name of that method, whose other keys it takes, whatever they are by then.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    decoder: str | None = None  # a file of dynatree/decoding; its knobs are further keys
    like: str | None = None  # one of `methods`, whose keys it takes where none is given
    reads: bool | None = None  # draft by the pair's `features`; null: as the method that it is like, or not

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.decoder is None) == (self.like is None):
            raise ValueError(f"decoder {self.decoder!r}, like {self.like!r}; give one of both")
        return self

    @property
    def own(self) -> dict[str, Any]:
        """The knobs that stand here."""
        return dict(self.model_extra or {})

    def method(self, methods: dict[str, Method]) -> Method:
        """It as a method of its own."""
        reads = {} if self.reads is None else {"reads": self.reads}
        if self.like is None:
            return Method(decoder=str(self.decoder), **reads, **self.own)
        usual = methods[self.like]
        return Method(**usual.model_dump() | reads | self.own)


class KindOfText(Knobs):
    """How tokens are chosen; nothing given: the likeliest, greedily.

    `repetition_penalty`, `no_repeat_ngram_size`: logits processors (generation/logits_processors.py). `do_sample`: draw
    them, by `temperature`, `top_k`, `top_p`, `min_p` and `seed`, each prompt with its place as request key
    (generation/sampling.py).
    """

    repetition_penalty: float = 1.0  # 1: none; above: tokens that the text has are less likely
    no_repeat_ngram_size: int = 0  # so many tokens in a row never come twice; 0: they may
    do_sample: bool = False  # draw tokens; false: take the likeliest
    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # draw from so many likeliest tokens; 0: all
    top_p: float = 1.0  # from the likeliest that reach it together; 1: all
    min_p: float = 0.0  # from tokens of at least so much of the likeliest's probability; 0: all
    seed: int = 0  # of the noise that tokens are drawn by

    @property
    def options(self) -> dict[str, Any]:
        """Those that change something, as options of a generation (generation/options.py)."""
        fields = KindOfText.model_fields
        return {name: value for name in fields if (value := getattr(self, name)) != fields[name].default}


class Experiment(KindOfText):
    """Runs beside the headline, compared with one another: methods on data sets, under conditions.

    `settings`: further settings of a method, as written in a path. `also`: methods that only this experiment runs.
    `prompt_tokens`, `batches`: lengths of prompts and numbers of requests decoded together; none: the scale's, and 1.
    `dtypes`: formats, each with its own runs, int8 and int4 on CPUs alone; none: the global `dtype`. The keys of
    `KindOfText` are those of all its runs.
    """

    datasets: list[str] = Field(min_length=1)  # of `sources`
    methods: list[str]  # of `methods`, in their own settings
    settings: dict[str, list[str]] = Field(default_factory=dict)  # by method: further ones, such as D5_B2_tau0.03_N64
    also: dict[str, Variant] = Field(default_factory=dict)  # by name: methods that only this experiment runs
    prompt_tokens: list[int] = Field(default_factory=list)  # lengths of prompts; none: the scale's
    batches: list[int] = Field(default_factory=list)  # numbers of requests decoded together; none: 1
    dtypes: list[DataType] = Field(default_factory=list)  # formats, each with its own runs; none: the global `dtype`

    @field_validator("datasets", "methods", "prompt_tokens", "batches", "dtypes")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        return once(values)

    @field_validator("settings")
    @classmethod
    def _each_once(cls, settings: dict[str, list[str]]) -> dict[str, list[str]]:
        return {method: once(listed) for method, listed in settings.items()}

    @field_validator("prompt_tokens", "batches")
    @classmethod
    def _positive(cls, values: list[int]) -> list[int]:
        return from_one(values)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        named = [*self.methods, *self.settings, *self.also]
        if twins := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"{twins[0]} stands in more than one of methods, settings, also")
        return self


# Of a grid: numbers of tokens.
Counts = Annotated[list[int], Field(min_length=1), AfterValidator(from_one)]


class LookupGrid(Knobs):
    """Values to try in llama.cpp's prompt lookup."""

    draft_tokens: Counts  # most tokens of a proposal
    max_ngram: Counts  # longest match that is looked for


class DraftGrid(Knobs):
    """Values to try where llama.cpp drafts with the drafter."""

    draft_tokens: Counts  # tokens drafted a round


class LlamaCpp(Knobs):
    """llama.cpp's ways of speculation that are compared, beside its autoregressive decoding; null: not that one."""

    lookup: LookupGrid | None = None  # its prompt lookup
    draft: DraftGrid | None = None  # its draft model

    @property
    def grids(self) -> dict[str, dict[str, list[int]]]:
        """The values to try, by way."""
        found: dict[str, dict[str, list[int]]] = self.model_dump(exclude_none=True)
        return found


class Benchmark(Knobs):
    """Methods compared side by side: some of `methods`, and some that only the benchmark runs.

    `texts`: kinds of text by name.
    `dtypes`: formats, in each of which methods are compared by themselves, int8 and int4 on CPUs alone.
    `grids`: values of a method's knobs, of which the fastest combination on tuning text is taken.
    `repeated`: methods whose slowest prompt is timed again, to tell a slow prompt from a slow moment.
    `llama_cpp`: values of the knobs of llama.cpp's own ways, likewise (`make llama_cpp`).
    """

    texts: dict[str, KindOfText]  # kinds of text, by name
    methods: list[str]  # of `methods`, in their own settings
    also: dict[str, Variant]  # by name: methods that only the benchmark runs
    grids: dict[str, dict[str, list[Any]]]  # by method and knob: values, of which the fastest combination is taken
    # formats, each with its own records; none: the global `dtype`
    dtypes: Annotated[list[DataType], AfterValidator(once)] = Field(default_factory=list)
    repeated: list[str] = Field(default_factory=list)  # methods whose slowest prompt is timed again
    llama_cpp: LlamaCpp = Field(default_factory=LlamaCpp)  # the same for llama.cpp's own ways

    @field_validator("grids")
    @classmethod
    def _something_to_try(cls, grids: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
        if empty := [f"{name}.{knob}" for name, grid in grids.items() for knob, values in grid.items() if not values]:
            raise ValueError(f"{empty[0]}: []; give at least 1 value, or leave the knob out")
        return grids

    def all_methods(self, methods: dict[str, Method]) -> dict[str, Method]:
        """Every method that is compared, by name, in order."""
        own = {name: variant.method(methods) for name, variant in self.also.items()}
        return {name: methods[name] for name in self.methods} | own


class Limits(Knobs):
    """What stops a slip of the pen from starting a year of work: the most generation runs."""

    runs: int = Field(ge=1)  # more generation runs are refused


class Pair(Knobs):
    """Where a target and its drafters come from: `kind` and that kind's keys (data/model_sources.py)."""

    target: dict[str, Any]  # the model whose output is wanted
    drafter: dict[str, Any]  # a language model
    features: dict[str, Any] | None = None  # of kind distil: one that reads the target's states


class Distil(Knobs):
    """How the drafter is had: trained afresh, or from its trained part where the checkout has one."""

    retrain: bool  # true: train afresh; false: take the trained part in drafters/, where there is one


class Source(BaseModel):
    """A data set: `kind` names a plug-in of dynatree/data/sources; other keys are its own.

    `start`: prompts begin at a document's first token ("body") or between 10 % and 90 % of it ("interior").
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str  # a file of dynatree/data/sources; its keys are further keys
    start: Literal["body", "interior"]  # of prompts: a document's first token, or within it
    evaluation_share: float = Field(gt=0, lt=1)  # of the documents: never trained or tuned on

    @property
    def origin(self) -> dict[str, Any]:
        """The plug-in's own keys."""
        return dict(self.model_extra or {})


class Params(Knobs):
    """The whole of params.yaml."""

    scale: str  # how much of everything: one of `scales`
    pair: str  # target and drafter: one of `pairs`
    datasets: list[str] = Field(min_length=1)  # of `sources`; every method runs on each
    tuning: list[str] = Field(default_factory=list)  # of `datasets`: for drafter and calibration; none: all
    seed: int = Field(ge=0)  # of splits, prompts, training and random models
    dtype: DataType  # of the models
    device: Device  # where they compute
    threads: int | None = Field(ge=1, le=MOST_THREADS)  # of timed jobs; null: the physical cores
    distil: Distil  # whether the drafter is trained afresh
    methods: dict[str, Method]  # by name
    experiments: dict[str, Experiment]  # runs beside the main ones, by name
    benchmark: Benchmark  # methods side by side in one process
    timeline: list[str]  # methods whose phases are timed
    memory: list[str]  # methods whose peak of memory is taken
    figures: list[str]  # to draw
    limits: Limits  # on what a slip may start
    scales: dict[str, Scale]  # by name
    pairs: dict[str, Pair]  # by name
    sources: dict[str, Source]  # of text, by name

    @property
    def sizes(self) -> Scale:
        """The active scale."""
        return self.scales[self.scale]

    @property
    def benchmarked(self) -> list[DataType]:
        """Formats in which the benchmark compares methods."""
        return self.benchmark.dtypes or [self.dtype]

    @property
    def tuned_on(self) -> list[str]:
        """Data sets of whose tuning text drafter and calibration are."""
        return self.tuning or self.datasets

    def place(self, key: str) -> str:
        """Where params.yaml has the value of this key: at the active scale, if that has another instead."""
        return key if getattr(self.sizes.instead, key) is None else f"scales.{self.scale}.instead.{key}"

    def at_its_scale(self) -> "Params":
        """With what the active scale has instead."""
        given = {key: value for key, value in self.sizes.instead if value is not None}
        renamed = dict(zip(self.datasets, given.get("datasets", self.datasets), strict=True))
        few = QUANTISED if given.get("device", self.device) != "cpu" else ()

        def kept(dtypes: list[DataType]) -> list[DataType]:
            return [dtype for dtype in dtypes if dtype not in few]

        experiments = {
            title: experiment.model_copy(
                update={
                    "datasets": [renamed.get(name, name) for name in experiment.datasets],
                    "dtypes": kept(experiment.dtypes),
                }
            )
            for title, experiment in self.experiments.items()
        }
        tuning = [renamed.get(name, name) for name in self.tuning]
        benchmark = self.benchmark.model_copy(update={"dtypes": kept(self.benchmark.dtypes)})
        changed = {"tuning": tuning, "experiments": experiments, "benchmark": benchmark}
        return self.model_copy(update={**given, **changed})

    def without_what_is_left_out(self) -> "Params":
        """With the experiments alone that the active scale is for, and without figures that it names, or theirs."""
        gone = self.sizes.leaves_out
        left = {title: each for title, each in self.experiments.items() if title not in gone}
        drawn = [name for name in self.figures if name not in gone]
        return self.model_copy(update={"experiments": left, "figures": drawn})
