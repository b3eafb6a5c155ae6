"""The tidy tables that aggregation writes and figures read: one Arrow schema per table, each column with its meaning.

Knows no model and no figure. `results/<name>.parquet` holds the table `<name>`.
"""

import pyarrow as pa

from dynatree.tables.bootstrap import MINIMUM_GROUPS, MINIMUM_PROMPTS
from dynatree.tables.columns import COUNT, FLAG, METHOD_KEY, REAL, TEXT, column
from dynatree.tables.run_tables import RUN_TABLES

TABLES: dict[str, pa.Schema] = {
    **RUN_TABLES,
    "summary": pa.schema(
        [
            *METHOD_KEY,
            column("prompt_tokens", COUNT, "tokens in the prompts"),
            column("batch", COUNT, "requests decoded together"),
            column("dtype", TEXT, "format in which the models compute"),
            column("kind", TEXT, "kind of text: `greedy`, or by what tokens were chosen otherwise"),
            column("metric", TEXT, "a real-valued column of `runs`"),
            column("prompts", COUNT, "prompts with a value"),
            column("documents", COUNT, "documents they come from"),
            column("measurements", COUNT, "prompts, or groups of them that were decoded together"),
            column("output_tokens", COUNT, "most tokens emitted per prompt"),
            column(
                "value",
                REAL,
                "mean over prompts; geometric for times, speedups, tokens/s and perplexity, else arithmetic",
            ),
            column(
                "low",
                REAL,
                f"lower end of the 95 % bootstrap interval over documents or batches; null below {MINIMUM_GROUPS}",
            ),
            column("high", REAL, "upper end of that interval; null likewise"),
            column(
                "significant",
                FLAG,
                f"for speedups: whether that interval excludes 1, with at least {MINIMUM_PROMPTS} measurements; null "
                "for other metrics",
            ),
        ]
    ),
    "costs": pa.schema(
        [
            column("part", TEXT, "`verify`: a target forward and its verification; `draft`: one level of drafting"),
            column("dtype", TEXT, "format in which the models compute"),
            column("batch", COUNT, "requests in one forward"),
            column("context", COUNT, "tokens in the cache before the forward"),
            column("tokens", COUNT, "new tokens in the forward, of each request"),
            column("ms", REAL, "median ms of such a forward"),
        ]
    ),
    "memory": pa.schema(
        [
            column("method", TEXT, "name of the method in params.yaml; each in a process of its own"),
            column("settings", TEXT, "the method's knobs"),
            column("dataset", TEXT, "name of the data set"),
            column("prompt_id", TEXT, "prompt identifier"),
            column("prompt_tokens", COUNT, "tokens in the prompt"),
            column("output_tokens", COUNT, "tokens emitted"),
            column("weights_mib", REAL, "MiB of the target's weights"),
            column(
                "drafter_weights_mib",
                REAL,
                "MiB of the drafter's weights, without those that it shares; 0 where none is loaded",
            ),
            column("load_peak_mib", REAL, "MiB: the process's high-water mark until everything is loaded"),
            column("loaded_mib", REAL, "MiB held once everything is loaded, before the request"),
            column("peak_mib", REAL, "MiB: the high-water mark of the request, reset after loading"),
            column(
                "cache_used_mib",
                REAL,
                "MiB of the target's keys and values, of committed tokens and tree together, at their most",
            ),
            column("cache_allocated_mib", REAL, "MiB of the tensors that hold them; null where that cannot be seen"),
            column("drafter_cache_used_mib", REAL, "the same for the drafter; 0 where there is none"),
            column("drafter_cache_allocated_mib", REAL, "the same for the drafter"),
        ]
    ),
    "drafter": pa.schema(
        [
            column("kind", TEXT, "`agreement` with the target's greedy choice, or `simulated` decoding"),
            column("dataset", TEXT, "name of the data set"),
            column("part", TEXT, "`text`, or which of the target's greedy continuations of it"),
            column(
                "rank",
                COUNT,
                "of agreement: among how many first choices of the drafter the target's is; null for simulated",
            ),
            column("positions", COUNT, "of agreement: positions compared; null for simulated"),
            column("agreement", REAL, "share of positions, 0..1; null for simulated"),
            column(
                "method",
                TEXT,
                "of simulated: `autoregressive`, `chain`, `tree`, `prompt_lookup`, `lookup`, `oracle`; null for "
                "agreement",
            ),
            column(
                "setting",
                TEXT,
                "of simulated: its knobs (K3, D2_B2_N3), empty for autoregressive; null for agreement",
            ),
            column("tokens_per_round", REAL, "of simulated: tokens emitted per round, the target's own included"),
            column("tokens_per_second", REAL, "of simulated: by the measured costs of forwards, prefill left out"),
            column("speedup", REAL, "of simulated: over autoregressive decoding"),
        ]
    ),
    "benchmark": pa.schema(
        [
            column("text", TEXT, "name of a kind of text: one of `benchmark.texts` in params.yaml"),
            column("kind", TEXT, "kind of text: `greedy`, or by what tokens were chosen otherwise"),
            column("dataset", TEXT, "name of the data set, or `all`"),
            column("dtype", TEXT, "format in which our target computes; null for llama.cpp's, whose file has its own"),
            column(
                "method",
                TEXT,
                "name of the method; `autoregressive_again`: autoregressive decoding timed a second time, which shows "
                "how far a ratio strays by chance",
            ),
            column(
                "baseline",
                TEXT,
                "method compared with: the ratio is its time / this method's, prompt by prompt, in autoregressive "
                "steps",
            ),
            column(
                "part",
                TEXT,
                "`whole`; over `autoregressive` and `transformers` also `quarter 1` to `quarter 4` of the output, "
                "without the first commit's tokens",
            ),
            column("settings", TEXT, "the method's knobs, tuned where params.yaml has a grid of them"),
            column("drafter", TEXT, "model that drafts; null where none does, and of llama.cpp's ways"),
            column(
                "edges",
                pa.list_(TEXT),
                "knobs tuned to the largest or smallest value of their grid; null: not tuned",
            ),
            column("prompts", COUNT, "prompts measured"),
            column("documents", COUNT, "documents they come from"),
            column("value", REAL, "geometric mean of the ratios over prompts"),
            column(
                "low", REAL, f"lower end of the 95 % bootstrap interval over documents; null below {MINIMUM_GROUPS}"
            ),
            column("high", REAL, "upper end of that interval; null likewise"),
            column("worst", REAL, "smallest ratio of any prompt"),
            column(
                "worst_again",
                REAL,
                "median ratio on that prompt when it and autoregressive decoding were timed again; null where they "
                "were not",
            ),
            column("significant", FLAG, f"whether that interval excludes 1, with at least {MINIMUM_PROMPTS} prompts"),
            column("throughput", REAL, "tokens/s at the machine's usual pace, geometric mean"),
            column(
                "repetition",
                REAL,
                "share of output tokens that complete 17 tokens in a row that occurred before in prompt or output, "
                "mean over prompts",
            ),
            column(
                "identical",
                REAL,
                "share of outputs that equal those of autoregressive decoding, token for token; null where they "
                "were drawn otherwise",
            ),
        ]
    ),
    "perplexity": pa.schema(
        [
            column("dataset", TEXT, "name of the data set"),
            column("dtype", TEXT, "format of the target's weights; null in records of earlier versions"),
            column("split", TEXT, "`evaluation`"),
            column("tokens", COUNT, "tokens scored"),
            column("window", COUNT, "context window in tokens"),
            column("stride", COUNT, "stride in tokens"),
            column("perplexity", REAL, "of the text under the target"),
        ]
    ),
}

TABLES["llama_cpp"] = pa.schema(
    [
        *TABLES["benchmark"],
        column("of_fastest", FLAG, "whether the baseline is llama.cpp's fastest way over all data sets of this text"),
        column("weight_bytes", COUNT, "bytes of the target's weights; of llama.cpp's, of the file that holds them"),
    ]
)
TABLES["llama_cpp_costs"] = pa.schema(
    [
        column("engine", TEXT, "`llama_cpp`, or the format in which our target computes"),
        column("context", COUNT, "tokens in the cache before the forward"),
        column("tokens", COUNT, "new tokens in the forward"),
        column("ms", REAL, "median ms of such a forward; ours with its verification"),
    ]
)

# Tables by figure that are made when asked for (`make benchmark`, `make llama_cpp`), and no part of the job graph of
# `all`; so are these figures.
APART: dict[str, tuple[str, ...]] = {"benchmark": ("benchmark",), "llama_cpp": ("llama_cpp", "llama_cpp_costs")}


def describe() -> str:
    """The schema as a Markdown reference, one Parquet file per table."""
    lines = [
        "# Columns of `results/*.parquet`",
        "",
        "Made from `dynatree/tables/schema.py` by `dynatree report --schema`.",
        "",
    ]
    for name, schema in TABLES.items():
        lines += [f"## `{name}`", "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{f.name}` | {f.type} | {f.metadata[b'meaning'].decode()} |" for f in schema]
        lines.append("")
    return "\n".join(lines)
