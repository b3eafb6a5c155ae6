# Generation: timed runs of every method, audited behind the timing, and instrumented passes for the timeline. Timed jobs
# run alone. A flip above the tolerance fails.
include: "common.smk"


rule generate:
    input:
        script="workflow/scripts/generate.py",
        library=lambda w: decoding_library("workflow/scripts/generate.py", run_of(w)),
        models=lambda w: models(run_of(w)),
        calibration=lambda w: calibration(run_of(w)),
        prompts=f"data/prompts/{PARAMS.pair}/{{dataset}}.parquet",
        tokens=f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        outputs="results/{top}/{method}/{settings}/{dataset}/outputs.jsonl",
        timings="results/{top}/{method}/{settings}/{dataset}/timings.json",
        audit="results/{top}/{method}/{settings}/{dataset}/audit.jsonl",
    log:
        "logs/generate/{top}/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    params:
        run=run_of,
        knobs=lambda w: json.dumps(dict(run_of(w).knobs)),
        models=lambda w, input: model_options(input.models, input.calibration),
        reference=SIZES.reference_seconds,
        machine=MACHINE,
        folder=subpath(output.outputs, parent=True),
    shell:
        "python {input.script} {params.models} --decoder {params.run.decoder} "
        "--knobs {params.knobs:q} --prompts {input.prompts} --tokens {input.tokens} --count {params.run.prompts} "
        "--output-tokens {params.run.output_tokens} --repeats {params.run.repeats} "
        "--reference-seconds {params.reference} {params.machine} --out {params.folder} 2>&1 | tee {log:q}"


rule timeline:
    input:
        script="workflow/scripts/timeline.py",
        library=lambda w: decoding_library("workflow/scripts/timeline.py", pass_of(w)),
        models=lambda w: models(pass_of(w)),
        calibration=lambda w: calibration(pass_of(w)),
        prompts=f"data/prompts/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        "results/timeline/{method}/{settings}/{dataset}/phases.json",
    log:
        "logs/timeline/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    resources:
        machine=100,
    params:
        run=pass_of,
        knobs=lambda w: json.dumps(dict(pass_of(w).knobs)),
        models=lambda w, input: model_options(input.models, input.calibration),
        machine=MACHINE,
        folder=subpath(output[0], parent=True),
    shell:
        "python {input.script} {params.models} --decoder {params.run.decoder} "
        "--knobs {params.knobs:q} --prompts {input.prompts} --output-tokens {params.run.output_tokens} "
        "{params.machine} --out {params.folder} 2>&1 | tee {log:q}"
