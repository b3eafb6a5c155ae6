# The paired benchmark: not part of `all`, and asked for by hand. What was measured is kept and never measured again.
include: "common.smk"


BENCHMARKED = PARAMS.benchmark.all_methods(PARAMS.methods)


rule benchmark:
    input:
        script="workflow/scripts/benchmark.py",
        library=library("workflow/scripts/benchmark.py"),
        decoding=sorted({decoding_library("workflow/scripts/generate.py", method) for method in BENCHMARKED.values()}),
        models=[f"{TARGET}/manifest.json", f"{DRAFTER}/manifest.json"],
        calibration=CALIBRATION,
        tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.datasets, pair=PARAMS.pair),
    output:
        "results/benchmark.parquet",
    log:
        "logs/benchmark/benchmark.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        methods=json.dumps({name: method.model_dump() for name, method in BENCHMARKED.items()}),
        grids=json.dumps(PARAMS.benchmark.grids),
        repeated=" ".join(PARAMS.benchmark.repeated),
        texts=json.dumps(PARAMS.benchmark.texts),
        start=[PARAMS.sources[dataset].start for dataset in PARAMS.datasets],
        sizes=SIZES.benchmark.model_dump(),
        prompt_tokens=SIZES.prompt_tokens,
        seed=PARAMS.seed,
        machine=MACHINE,
    shell:
        "python {input.script} {params.models} --methods {params.methods:q} --grids {params.grids:q} --texts {params.texts:q} "
        "--tokens {input.tokens} --start {params.start} --prompts {params.sizes[prompts]} "
        "--prompt-tokens {params.prompt_tokens} --output-tokens {params.sizes[output_tokens]} "
        "--repeated {params.repeated} --repeats {params.sizes[repeats]} "
        "--tuning-prompts {params.sizes[tuning_prompts]} --tuning-output-tokens {params.sizes[tuning_output_tokens]} --seed {params.seed} "
        "{params.machine} --decoding {input.decoding} --records results/benchmark --out {output} 2>&1 | tee {log:q}"


# llama.cpp on the 4-bit file that the target comes from, on the same prompts; needs the extra `bench`.
rule quantised:
    input:
        script="workflow/scripts/quantised.py",
        library=library("workflow/scripts/quantised.py"),
        model=f"{TARGET}/manifest.json",
        benchmark="results/benchmark.parquet",
        tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.datasets, pair=PARAMS.pair),
    output:
        "results/quantised.parquet",
    log:
        "logs/quantised/quantised.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    params:
        source=json.dumps(PAIR.target),
        grid=json.dumps(PARAMS.benchmark.quantised),
        texts=json.dumps(PARAMS.benchmark.texts),
        start=[PARAMS.sources[dataset].start for dataset in PARAMS.datasets],
        sizes=SIZES.benchmark.model_dump(),
        prompt_tokens=SIZES.prompt_tokens,
        seed=PARAMS.seed,
        machine=MACHINE,
    shell:
        "python {input.script} --target $(dirname {input.model}) --source {params.source:q} --cache .cache/downloads "
        "--grid {params.grid:q} --texts {params.texts:q} --benchmark results/benchmark "
        "--tokens {input.tokens} --start {params.start} --prompt-tokens {params.prompt_tokens} "
        "--output-tokens {params.sizes[output_tokens]} --tuning-prompts {params.sizes[tuning_prompts]} "
        "--tuning-output-tokens {params.sizes[tuning_output_tokens]} --seed {params.seed} {params.machine} "
        "--records results/quantised --out {output} 2>&1 | tee {log:q}"
