"""The tidy tables that aggregation writes and figures read: one Arrow schema a table, each column with its meaning.

Knows no model and no figure. `results/<name>.parquet` holds the table `<name>`.
"""

import pyarrow as pa

from dynatree.tables.bootstrap import MINIMUM_GROUPS, MINIMUM_PROMPTS


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning})


_text, _int, _real, _flag = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_METHOD_KEY = [
    _column("experiment", _text, "`headline`, or an experiment of params.yaml"),
    _column("method", _text, "name of the method in params.yaml"),
    _column("settings", _text, "the method's knobs, as in the run's folder name (D8_B3_tau0.03_N64)"),
    _column("dataset", _text, "name of the data set in params.yaml"),
]
_RUN_KEY = [
    *_METHOD_KEY,
    _column("prompt_id", _text, "prompt identifier: data set, document, first token"),
    _column("repeat", _int, "0-based repeat of the same prompt"),
]

TABLES: dict[str, pa.Schema] = {
    "runs": pa.schema(
        [
            *_RUN_KEY,
            _column("document_id", _text, "document of the prompt; the unit of the bootstrap"),
            _column("prompt_tokens", _int, "tokens in the prompt"),
            _column("batch", _int, "requests decoded together"),
            _column("group", _int, "which of the run's groups of requests; one alone is a group, too"),
            _column("output_tokens", _int, "tokens emitted"),
            _column("seconds", _real, "wall seconds of the whole request (of its batch), prefill included"),
            _column(
                "pace",
                _real,
                "median reference step of plain decoding's main runs / this one's; times and tokens/s are at that "
                "pace, the usual one, so that runs of different minutes compare",
            ),
            _column("throughput", _real, "tokens/s: tokens emitted (by the whole batch) / (seconds * pace)"),
            _column("ttft_ms", _real, "ms from the request's start to the first commit, times pace"),
            _column("tpot_ms", _real, "ms per token after the first commit, times pace; null if nothing came after it"),
            _column("decode_throughput", _real, "tokens/s after the first commit: 1000 / tpot_ms"),
            _column(
                "reference_step_ms", _real, "ms of a plain target step, mean of the samples taken between the rounds"
            ),
            _column("reference_spread", _real, "standard deviation of these samples / their mean"),
            _column("normalised_seconds", _real, "seconds / seconds of one reference step"),
            _column("speedup", _real, "normalised time of our autoregressive loop / that of this run, same prompt"),
            _column("speedup_transformers", _real, "the same against transformers' own greedy generate"),
            _column(
                "peak_mib",
                _real,
                "MiB in use at the peak of the request (of its batch); null if the system does not tell",
            ),
            _column("iterations", _int, "verification rounds (plain steps for autoregressive), prefill apart"),
            _column(
                "tokens_per_iteration", _real, "tokens emitted after the first commit / iterations, bonus included"
            ),
            _column("target_forwards", _int, "target forwards counted at the model call, prefill apart"),
            _column("draft_forwards", _int, "drafter forwards counted at the model call, all of them"),
            _column("tokens_per_target_forward", _real, "tokens emitted after the first commit / target_forwards"),
            _column("drafted", _int, "nodes verified, summed over rounds (a chain: drafted tokens)"),
            _column("drafted_depth", _int, "depth of the verified trees, summed over rounds"),
            _column("accepted", _int, "drafted tokens accepted, summed over rounds"),
            _column("acceptance_rate", _real, "accepted / drafted_depth, 0..1; null where nothing was drafted"),
            _column("node_efficiency", _real, "accepted / drafted, 0..1; null where nothing was drafted"),
            _column("mean_path_length", _real, "accepted drafted tokens a round, bonus excluded"),
            _column("flips", _int, "emitted tokens that are not the argmax of the teacher-forced target"),
            _column("largest_gap", _real, "largest logit distance of an emitted token from the argmax"),
            _column("first_flip", _int, "position of the first flip in the output; null if there is none"),
            _column("identical", _flag, "output equals that of our autoregressive loop, token for token"),
            _column("perplexity", _real, "of the output under the target, exp of the mean negative log-likelihood"),
            _column("repetition", _real, "share of output tokens whose 17-gram ending there occurred earlier"),
        ]
    ),
    "rounds": pa.schema(
        [
            *_RUN_KEY,
            _column("round", _int, "0-based round; prefill is not a round"),
            _column("drafted", _int, "nodes of the verified tree, root apart"),
            _column("depth", _int, "depth of the verified tree"),
            _column("accepted", _int, "drafted tokens accepted"),
            _column("emitted", _int, "tokens emitted, bonus included, cut at the limit"),
            _column("draft_forwards", _int, "drafter forwards of the round; null where the method does not tell"),
            _column("commit_ms", _real, "ms from the request's start to the round's commit"),
            _column("output_tokens", _int, "tokens emitted up to and including this round"),
        ]
    ),
    "parts": pa.schema(
        [
            *_RUN_KEY,
            _column("document_id", _text, "document of the prompt; the unit of the bootstrap"),
            _column("prompt_tokens", _int, "tokens in the prompt"),
            _column("part", _text, "of an output decoded alone: `quarter 1` to `quarter 4`, or `loops` and `new text`"),
            _column(
                "tokens", _int, "tokens in it but those of the first commit; `loops`: of 17-grams that occurred earlier"
            ),
            _column("steps_a_token", _real, "seconds a token in it / seconds of one reference step"),
            _column("speedup", _real, "steps_a_token of our autoregressive loop / that of this run, same prompt"),
        ]
    ),
    "nodes": pa.schema(
        [
            *_RUN_KEY,
            _column("round", _int, "0-based round"),
            _column("node", _int, "index in the verified tree; 0 is the root, parents precede children"),
            _column("parent", _int, "index of the parent; -1 for the root"),
            _column("depth", _int, "distance from the root"),
            _column("rank", _int, "0-based order among its siblings by their probability; 0 for the root"),
            _column("token", _int, "token id"),
            _column("text", _text, "the token as text"),
            _column("path_log_probability", _real, "sum of the log-probabilities of the steps from the root"),
            _column("accepted", _flag, "on the accepted path (the root always is)"),
            _column("hit", _flag, "the target's token, given its parent was accepted; null if the parent was not"),
        ]
    ),
    "phases": pa.schema(
        [
            *_RUN_KEY,
            _column("round", _int, "0-based round; -1 for prefill"),
            _column("phase", _text, "`draft`, `select`, `verify`, `cache`; prefill is `prefill`"),
            _column("start_ms", _real, "ms from the request's start, instrumented pass, at the passes' usual pace"),
            _column("end_ms", _real, "ms from the request's start"),
            _column("forward_ms", _real, "ms of them within forwards of the target or the drafter, heads included"),
            _column("emitted", _int, "tokens emitted by the round, repeated on each of its phases"),
            _column("text", _text, "text of the emitted tokens, one per token joined with U+241F"),
            _column("accepted", _int, "how many of the emitted tokens were drafted"),
        ]
    ),
    "summary": pa.schema(
        [
            *_METHOD_KEY,
            _column("prompt_tokens", _int, "tokens in the prompts"),
            _column("batch", _int, "requests decoded together"),
            _column("metric", _text, "a real-valued column of `runs`"),
            _column("prompts", _int, "prompts with a value"),
            _column("documents", _int, "documents they come from"),
            _column("measurements", _int, "prompts, or groups of them that were decoded together"),
            _column("output_tokens", _int, "tokens emitted a prompt, at most"),
            _column("value", _real, "mean over prompts (geometric for times, speedup*, tokens/s, perplexity)"),
            _column(
                "low",
                _real,
                f"lower end of the 95 % bootstrap interval over documents or batches; null below {MINIMUM_GROUPS}",
            ),
            _column("high", _real, "upper end"),
            _column(
                "resolved",
                _flag,
                f"for speedup*: the interval excludes 1, of at least {MINIMUM_PROMPTS} measurements",
            ),
        ]
    ),
    "costs": pa.schema(
        [
            _column("part", _text, "`verify`: a target forward and its verification; `draft`: a level of drafting"),
            _column("batch", _int, "requests in one forward"),
            _column("context", _int, "committed tokens in the cache"),
            _column("tokens", _int, "new tokens of the forward, of each request"),
            _column("ms", _real, "median ms"),
        ]
    ),
    "memory": pa.schema(
        [
            _column("method", _text, "name of the method in params.yaml; each in a process of its own"),
            _column("settings", _text, "the method's knobs"),
            _column("dataset", _text, "name of the data set"),
            _column("prompt_id", _text, "prompt identifier"),
            _column("prompt_tokens", _int, "tokens in the prompt"),
            _column("output_tokens", _int, "tokens emitted"),
            _column("weights_mib", _real, "MiB of the target's weights"),
            _column(
                "drafter_weights_mib",
                _real,
                "MiB of the drafter's weights, without those that it shares; 0 where none is loaded",
            ),
            _column("load_peak_mib", _real, "MiB: the process's high-water mark until everything is loaded"),
            _column("loaded_mib", _real, "MiB held once everything is loaded, before the request"),
            _column("peak_mib", _real, "MiB: the high-water mark of the request, reset after loading"),
            _column("cache_used_mib", _real, "MiB of keys and values: most committed and tree tokens of the target"),
            _column("cache_allocated_mib", _real, "MiB of the tensors that hold them; null where it cannot be seen"),
            _column("drafter_cache_used_mib", _real, "the same for the drafter; 0 where there is none"),
            _column("drafter_cache_allocated_mib", _real, "the same for the drafter"),
        ]
    ),
    "drafter": pa.schema(
        [
            _column("kind", _text, "`agreement` with the target's greedy choice, or `simulated` decoding"),
            _column("dataset", _text, "name of the data set"),
            _column("part", _text, "`text`, or which of the target's greedy continuations of it"),
            _column("rank", _int, "of agreement: among how many first choices of the drafter; null for simulated"),
            _column("positions", _int, "of agreement: positions compared; null for simulated"),
            _column("agreement", _real, "share of positions, 0..1; null for simulated"),
            _column("method", _text, "of simulated: `plain`, `chain`, `tree`, `prompt_lookup`, `lookup`, `oracle`"),
            _column("setting", _text, "of simulated: its knobs (K3, D2_B2_N3); empty for plain; null for agreement"),
            _column("tokens_per_round", _real, "of simulated: tokens emitted a round, bonus included"),
            _column("tokens_per_second", _real, "of simulated: by the measured costs, prefill left out"),
            _column("speedup", _real, "of simulated: over plain"),
        ]
    ),
    "benchmark": pa.schema(
        [
            _column("text", _text, "`greedy`, or `penalised`: with the logits processors of params.yaml"),
            _column("dataset", _text, "name of the data set, or `all`"),
            _column("method", _text, "name of the method; `autoregressive_again` shows what chance does to a ratio"),
            _column(
                "baseline", _text, "the method whose time is divided by this one's, prompt by prompt, in plain steps"
            ),
            _column(
                "part",
                _text,
                "`whole`; over the plain baselines also `quarter 1` to `quarter 4` of the output, without the "
                "first commit's tokens",
            ),
            _column("settings", _text, "the method's knobs, tuned where params.yaml has a grid of them"),
            _column(
                "edges", pa.list_(_text), "knobs tuned to the largest or smallest value of their grid; null: not tuned"
            ),
            _column("prompts", _int, "prompts measured"),
            _column("documents", _int, "documents they come from"),
            _column("value", _real, "geometric mean of the ratios"),
            _column(
                "low", _real, f"lower end of the 95 % bootstrap interval over documents; null below {MINIMUM_GROUPS}"
            ),
            _column("high", _real, "upper end"),
            _column("worst", _real, "smallest ratio of a prompt"),
            _column(
                "worst_again",
                _real,
                "median ratio of that prompt timed again, with its plain loop; null where it was not, and for others",
            ),
            _column("resolved", _flag, f"the interval excludes 1, of at least {MINIMUM_PROMPTS} prompts"),
            _column("throughput", _real, "tokens/s at the machine's usual pace, geometric mean"),
            _column("repetition", _real, "share of output tokens whose 17-gram ending there occurred earlier, mean"),
            _column("identical", _real, "share of outputs equal to those of our autoregressive loop"),
        ]
    ),
    "perplexity": pa.schema(
        [
            _column("dataset", _text, "name of the data set"),
            _column("split", _text, "`evaluation`"),
            _column("tokens", _int, "tokens scored"),
            _column("window", _int, "context window in tokens"),
            _column("stride", _int, "stride in tokens"),
            _column("perplexity", _real, "of the text under the target"),
        ]
    ),
}

TABLES["quantised"] = pa.schema(
    [*TABLES["benchmark"], _column("weight_bytes", _int, "size of the file that the target's weights are in")]
)

# Made when asked for (`make benchmark`, `make quantised`), and no part of the job graph of `all`; so are their figures.
APART = ("benchmark", "quantised")


def describe() -> str:
    """The schema as a Markdown reference, one table a Parquet file."""
    lines = [
        "# Columns of `results/*.parquet`",
        "",
        "Made from `dynatree/schema.py` by `dynatree report --schema`.",
        "",
    ]
    for name, schema in TABLES.items():
        lines += [f"## `{name}`", "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{f.name}` | {f.type} | {f.metadata[b'meaning'].decode()} |" for f in schema]
        lines.append("")
    return "\n".join(lines)
