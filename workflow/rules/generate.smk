# Generation: timed runs of every method, and instrumented passes for the timeline. Timed jobs run alone.
include: "common.smk"


def run_of(wildcards):
    return RUNS[f"{wildcards.top}/{wildcards.method}/{wildcards.settings}/{wildcards.dataset}"]


def pass_of(wildcards):
    return TIMELINE[f"timeline/{wildcards.method}/{wildcards.settings}/{wildcards.dataset}"]


def drafter_option(run):
    return f"--drafter {DRAFTER}" if needs_drafter(run) else ""


def models(run):
    """Manifests stand for the weights: they hold the checksums, and are small enough to be compared by content."""
    return [f"{folder}/manifest.json" for folder in ([TARGET, DRAFTER] if needs_drafter(run) else [TARGET])]


rule generate:
    input:
        script="workflow/scripts/generate.py",
        library=lambda w: decoding_library(run_of(w)),
        models=lambda w: models(run_of(w)),
        prompts=f"data/{{dataset}}/{PARAMS.pair}/prompts.parquet",
    output:
        outputs="results/{top}/{method}/{settings}/{dataset}/outputs.jsonl",
        timings="results/{top}/{method}/{settings}/{dataset}/timings.json",
    params:
        run=run_of,
        knobs=lambda w: json.dumps(dict(run_of(w).knobs)),
        drafter=lambda w: drafter_option(run_of(w)),
        target=TARGET,
        reference=SIZES.reference_seconds,
        machine=MACHINE,
        folder="results/{top}/{method}/{settings}/{dataset}",
    log:
        "logs/generate/{top}/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    shell:
        "python {input.script} --target {params.target} {params.drafter} --decoder {params.run.decoder} "
        "--knobs {params.knobs:q} --prompts {input.prompts} --count {params.run.prompts} "
        "--output-tokens {params.run.output_tokens} --repeats {params.run.repeats} "
        "--reference-seconds {params.reference} {params.machine} --out {params.folder} 2>&1 | tee {log:q}"


rule timeline:
    input:
        script="workflow/scripts/generate.py",
        library=lambda w: decoding_library(pass_of(w)),
        models=lambda w: models(pass_of(w)),
        prompts=f"data/{{dataset}}/{PARAMS.pair}/prompts.parquet",
    output:
        "results/timeline/{method}/{settings}/{dataset}/phases.json",
    params:
        run=pass_of,
        knobs=lambda w: json.dumps(dict(pass_of(w).knobs)),
        drafter=lambda w: drafter_option(pass_of(w)),
        target=TARGET,
        reference=SIZES.reference_seconds,
        machine=MACHINE,
        folder="results/timeline/{method}/{settings}/{dataset}",
    log:
        "logs/timeline/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    shell:
        "python {input.script} --instrumented --target {params.target} {params.drafter} "
        "--decoder {params.run.decoder} --knobs {params.knobs:q} --prompts {input.prompts} --count 1 "
        "--output-tokens {params.run.output_tokens} --reference-seconds {params.reference} "
        "{params.machine} --out {params.folder} 2>&1 | tee {log:q}"
