# Generation: timed runs of every method, audited behind the timing, and instrumented passes for the timeline. Timed jobs
# run alone. A flip above the tolerance fails.
if "PARAMS" not in globals():

    include: "common.smk"


rule generate:
    input:
        library=lambda w: decoding_library("workflow/scripts/generate.py", run_of(w)),
        models=lambda w: models(run_of(w)),
        calibration=lambda w: calibration(run_of(w)),
        prompts=lambda w: prompts_file(run_of(w)),
        tokens=lambda w: tokens_file(run_of(w)),
    output:
        outputs="results/{top}/{method}/{settings}/{place}/outputs.jsonl",
        timings="results/{top}/{method}/{settings}/{place}/timings.json",
        audit="results/{top}/{method}/{settings}/{place}/audit.jsonl",
    log:
        "logs/generate/{top}/{method}/{settings}/{place}.log",
    priority: lambda w: turn(run_of(w).dtype, run_of(w).batch)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        method=lambda w: method_options(run_of(w)),
        sizes=lambda w: size_options(run_of(w)),
        options=lambda w: json.dumps(dict(run_of(w).options)),
        folder=subpath(output.outputs, parent=True),
    shell:
        "python workflow/scripts/generate.py {params.models} {params.method} {params.sizes} --prompts {input.prompts} "
        "--tokens {input.tokens} --options {params.options:q} --out {params.folder} 2>&1 | tee {log:q}"


rule timeline:
    input:
        library=lambda w: decoding_library("workflow/scripts/timeline.py", pass_of(w, "timeline")),
        models=lambda w: models(pass_of(w, "timeline")),
        calibration=lambda w: calibration(pass_of(w, "timeline")),
        prompts=lambda w: prompts_file(pass_of(w, "timeline")),
    output:
        "results/timeline/{method}/{settings}/{place}/phases.json",
    log:
        "logs/timeline/{method}/{settings}/{place}.log",
    priority: turn(PARAMS.dtype)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        method=lambda w: method_options(pass_of(w, "timeline")),
        folder=subpath(output[0], parent=True),
    shell:
        "python workflow/scripts/timeline.py {params.models} {params.method} --prompts {input.prompts} "
        "--out {params.folder} 2>&1 | tee {log:q}"


rule memory:
    input:
        library=lambda w: decoding_library("workflow/scripts/memory.py", pass_of(w, "memory")),
        models=lambda w: models(pass_of(w, "memory")),
        calibration=lambda w: calibration(pass_of(w, "memory")),
        prompts=lambda w: prompts_file(pass_of(w, "memory")),
    output:
        "results/memory/{method}/{settings}/{place}/memory.json",
    log:
        "logs/memory/{method}/{settings}/{place}.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        method=lambda w: method_options(pass_of(w, "memory")),
        folder=subpath(output[0], parent=True),
    shell:
        "DYNATREE_WORKER=off python workflow/scripts/memory.py {params.models} {params.method} --prompts {input.prompts} "
        "--out {params.folder} 2>&1 | tee {log:q}"
