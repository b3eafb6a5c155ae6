# Methods side by side: not part of `all`, and asked for by hand. What was measured is kept and never measured again.
if "PARAMS" not in globals():

    include: "common.smk"


ASKED = PARAMS.benchmark.all_methods(PARAMS.methods)
# By the only drafter of a pair without `features` they would be other methods than their names say.
LEFT_OUT = [name for name in PARAMS.benchmark.also if ASKED[name].reads and not PAIR.features]
BENCHMARKED = {name: method for name, method in ASKED.items() if name not in LEFT_OUT}
BESIDE_LLAMA = {name: PARAMS.methods[name] for name in ("autoregressive", "dynatree") if name in PARAMS.methods}
# What both rules read and are told.
BESIDE = {
    "models": pair_of(False),
    "tokens": expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.datasets, pair=PARAMS.pair),
}
SIDE_BY_SIDE = {
    "start": " ".join(PARAMS.sources[dataset].start for dataset in PARAMS.datasets),
    "sizes": f"--prompts {SIZES.benchmark.prompts} --prompt-tokens {SIZES.prompt_tokens} "
    f"--output-tokens {SIZES.benchmark.output_tokens} --repeats {SIZES.benchmark.repeats} "
    f"--tuning-prompts {SIZES.benchmark.tuning_prompts} "
    f"--tuning-output-tokens {SIZES.benchmark.tuning_output_tokens} --seed {PARAMS.seed}",
}


rule side_by_side:
    input:
        **BESIDE,
        features=features_of_pair(BENCHMARKED),
        calibration=lambda w: costs_of(BENCHMARKED, w.dtype),
        library=library("workflow/scripts/benchmark.py"),
        decoding=decoding_of(BENCHMARKED),
    output:
        "results/benchmark/{dtype}/benchmark.parquet",
    log:
        "logs/benchmark/{dtype}/benchmark.log",
    priority: lambda w: turn(w.dtype)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        **SIDE_BY_SIDE,
        machine=lambda w: machine(w.dtype),
        models=lambda w, input: options_of(BENCHMARKED, input.models, input.features, w.dtype),
        methods=described(BENCHMARKED),
        grids=json.dumps({name: grid for name, grid in PARAMS.benchmark.grids.items() if name in BENCHMARKED}),
        texts=json.dumps({name: kind.options for name, kind in PARAMS.benchmark.texts.items()}),
        repeated=" ".join(name for name in PARAMS.benchmark.repeated if name in BENCHMARKED),
        left_out=f"--left-out {' '.join(LEFT_OUT)} " if LEFT_OUT else "",
        records=subpath(output[0], parent=True),
    shell:
        "python workflow/scripts/benchmark.py {params.models} --methods {params.methods:q} "
        "--grids {params.grids:q} --texts {params.texts:q} --tokens {input.tokens} --start {params.start} {params.sizes} --repeated {params.repeated} "
        "{params.left_out}{params.machine} --decoding {input.decoding} --records {params.records} --out {output} 2>&1 | tee {log:q}"


rule benchmark:
    input:
        library=library("workflow/scripts/benchmark_table.py"),
        formats=expand("results/benchmark/{dtype}/benchmark.parquet", dtype=PARAMS.benchmarked),
    output:
        "results/benchmark.parquet",
    log:
        "logs/benchmark/benchmark.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/benchmark_table.py --formats {input.formats} --out {output} 2>&1 | tee {log:q}"


# llama.cpp on the 4-bit file that the target comes from, beside autoregressive decoding and DynaTree; needs the extra `bench`.
rule llama_cpp:
    input:
        **BESIDE,
        features=features_of_pair(BESIDE_LLAMA),
        calibration=costs_of(BESIDE_LLAMA, PARAMS.dtype),
        library=library("workflow/scripts/benchmark.py"),
        decoding=decoding_of(BESIDE_LLAMA),
        costs=lambda w: costs_beside_llama(),
    output:
        table="results/llama_cpp.parquet",
        costs="results/llama_cpp_costs.parquet",
    log:
        "logs/benchmark/llama_cpp.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        **SIDE_BY_SIDE,
        machine=MACHINE,
        models=lambda w, input: options_of(BESIDE_LLAMA, input.models, input.features, PARAMS.dtype),
        methods=described(BESIDE_LLAMA),
        texts=json.dumps({name: kind.options for name, kind in PARAMS.benchmark.texts.items()}),
        source=json.dumps(PAIR.target),
        theirs=json.dumps(PARAMS.benchmark.llama_cpp.grids),
    shell:
        "python workflow/scripts/benchmark.py {params.models} --methods {params.methods:q} "
        "--grids {{}} --texts {params.texts:q} --tokens {input.tokens} --start {params.start} {params.sizes} "
        "--source {params.source:q} --cache .cache/downloads --llama-cpp {params.theirs:q} --costs {input.costs} "
        "--costs-out {output.costs} "
        "{params.machine} --decoding {input.decoding} --records results/llama_cpp --out {output.table} 2>&1 | tee {log:q}"
