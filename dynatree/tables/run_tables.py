"""Schemas of the tables of single runs: one row per run, per round, per part of an output, per node, per phase."""

import pyarrow as pa

from dynatree.tables.columns import COUNT, FLAG, REAL, RUN_KEY, TEXT, column

RUN_TABLES: dict[str, pa.Schema] = {
    "runs": pa.schema(
        [
            *RUN_KEY,
            column("document_id", TEXT, "document of the prompt; the bootstrap resamples documents"),
            column("prompt_tokens", COUNT, "tokens in the prompt"),
            column("batch", COUNT, "requests decoded together"),
            column("dtype", TEXT, "format in which the models compute"),
            column("drafter", TEXT, "model that drafts; null where none does, and of records that do not tell"),
            column("kind", TEXT, "kind of text: `greedy`, or by what tokens were chosen otherwise"),
            column(
                "group",
                COUNT,
                "which of the run's groups of requests decoded together, from 0; a request alone is a group, too",
            ),
            column("output_tokens", COUNT, "tokens emitted"),
            column(
                "seconds",
                REAL,
                "seconds from the start of the request (of its batch) to its end, prefill included",
            ),
            column(
                "pace",
                REAL,
                "usual seconds of an autoregressive step / its seconds during this run; usual: the median over the "
                "main runs of autoregressive decoding. Times and tokens/s below are at the usual pace, so that runs of"
                " different minutes compare",
            ),
            column("throughput", REAL, "tokens/s: tokens emitted (by the whole batch) / (seconds * pace)"),
            column("ttft_ms", REAL, "ms from the request's start to its first commit of tokens, times pace"),
            column(
                "tpot_ms",
                REAL,
                "ms per token after the first commit, times pace; null if no token came after it",
            ),
            column("decode_throughput", REAL, "tokens/s after the first commit: 1000 / tpot_ms"),
            column(
                "autoregressive_step_ms",
                REAL,
                "ms of an autoregressive step of the target, mean of the samples timed between the run's rounds, "
                "of which one above 1.5 times their median, which met a stall, counts as that much; of three it is "
                "left out",
            ),
            column("autoregressive_step_spread", REAL, "standard deviation of these samples / their mean"),
            column("normalised_seconds", REAL, "seconds / seconds of an autoregressive step during this run"),
            column(
                "speedup",
                REAL,
                "normalised_seconds of autoregressive decoding (method `autoregressive`) / normalised_seconds of this "
                "run, same prompt",
            ),
            column(
                "speedup_transformers",
                REAL,
                "the same, of transformers' `generate` (method `transformers`) / of this run",
            ),
            column(
                "peak_mib",
                REAL,
                "MiB in use at the peak of the request (of its batch); null if the system does not tell",
            ),
            column("iterations", COUNT, "verification rounds, prefill apart; of autoregressive decoding: its steps"),
            column(
                "tokens_per_iteration",
                REAL,
                "tokens emitted after the first commit / iterations; the target's own tokens count, too",
            ),
            column("target_forwards", COUNT, "forwards of the target, counted at the model call, prefill apart"),
            column("draft_forwards", COUNT, "forwards of the drafter, counted at the model call, all of them"),
            column("tokens_per_target_forward", REAL, "tokens emitted after the first commit / target_forwards"),
            column("drafted", COUNT, "drafted tokens verified (nodes of the trees), summed over rounds"),
            column(
                "drafted_depth",
                COUNT,
                "depth of the verified trees, summed over rounds: the most tokens that could have been accepted",
            ),
            column("accepted", COUNT, "drafted tokens accepted, summed over rounds"),
            column("acceptance_rate", REAL, "accepted / drafted_depth, 0..1; null where nothing was drafted"),
            column("node_efficiency", REAL, "accepted / drafted, 0..1; null where nothing was drafted"),
            column(
                "mean_path_length",
                REAL,
                "drafted tokens accepted per round; the target's own token of the round is not counted",
            ),
            column(
                "flips",
                COUNT,
                "emitted tokens that are not the target's first choice, by the noise that drew them, when it "
                "reads the output again in one forward; null where they were drawn otherwise",
            ),
            column(
                "largest_gap",
                REAL,
                "largest distance, in logits, of an emitted token from the target's first choice; null likewise",
            ),
            column("first_flip", COUNT, "position of the first flip in the output; null if there is none"),
            column(
                "identical",
                FLAG,
                "whether the output equals that of autoregressive decoding, token for token; null where it was "
                "drawn otherwise",
            ),
            column(
                "identical_float32",
                FLAG,
                "whether the output equals that of the same method with float32 weights; null where there is none",
            ),
            column("perplexity", REAL, "of the output under the target: exp of the mean negative log-likelihood"),
            column(
                "repetition",
                REAL,
                "share of output tokens that complete 17 tokens in a row that occurred before in prompt or output",
            ),
        ]
    ),
    "rounds": pa.schema(
        [
            *RUN_KEY,
            column("round", COUNT, "round of the run, from 0; prefill is not a round"),
            column("drafted", COUNT, "drafted tokens verified: nodes of the tree, root apart"),
            column("depth", COUNT, "depth of the verified tree"),
            column("accepted", COUNT, "drafted tokens accepted"),
            column("emitted", COUNT, "tokens emitted, the target's own included, cut at the limit"),
            column("draft_forwards", COUNT, "drafter forwards of the round; null where the method does not tell"),
            column("commit_ms", REAL, "ms from the request's start to the round's commit"),
            column("output_tokens", COUNT, "tokens emitted up to and including this round"),
        ]
    ),
    "parts": pa.schema(
        [
            *RUN_KEY,
            column("document_id", TEXT, "document of the prompt; the bootstrap resamples documents"),
            column("prompt_tokens", COUNT, "tokens in the prompt"),
            column("part", TEXT, "of an output decoded alone: `quarter 1` to `quarter 4`, or `loops` and `new text`"),
            column(
                "tokens",
                COUNT,
                "tokens in it, without those of the first commit; `loops`: in 17 tokens or more in a row that occurred"
                " before",
            ),
            column(
                "normalised_seconds_per_token",
                REAL,
                "seconds per token in it / seconds of an autoregressive step during this run",
            ),
            column(
                "speedup",
                REAL,
                "normalised_seconds_per_token of autoregressive decoding / that of this run, same prompt and part",
            ),
        ]
    ),
    "nodes": pa.schema(
        [
            *RUN_KEY,
            column("round", COUNT, "round of the run, from 0"),
            column("node", COUNT, "index in the verified tree; 0 is the root, parents precede children"),
            column("parent", COUNT, "index of the parent; -1 for the root"),
            column("depth", COUNT, "distance from the root"),
            column("rank", COUNT, "place among its siblings by their probability, from 0; 0 for the root"),
            column("token", COUNT, "token id"),
            column("text", TEXT, "the token as text"),
            column("path_log_probability", REAL, "sum of the log-probabilities of the steps from the root"),
            column("accepted", FLAG, "whether it is on the accepted path (the root always is)"),
            column(
                "hit",
                FLAG,
                "whether it is the target's choice, given that its parent was accepted; null if it was not",
            ),
        ]
    ),
    "phases": pa.schema(
        [
            *RUN_KEY,
            column("round", COUNT, "round of the run, from 0; -1 for prefill"),
            column("phase", TEXT, "`draft`, `select`, `verify`, `cache`; or `prefill`"),
            column(
                "start_ms",
                REAL,
                "ms from the request's start, in a pass with a clock at each phase, at the usual pace of these passes",
            ),
            column("end_ms", REAL, "ms from the request's start to the end of the phase, likewise"),
            column(
                "forward_ms",
                REAL,
                "ms of the phase within forwards of the target or the drafter, output layer included",
            ),
            column("emitted", COUNT, "tokens emitted by the round, repeated on each of its phases"),
            column("text", TEXT, "text of the emitted tokens, one per token joined with U+241F"),
            column("accepted", COUNT, "how many of the emitted tokens were drafted"),
        ]
    ),
}
