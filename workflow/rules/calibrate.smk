# What forwards cost on this machine, and how often drafted tokens are right on tuning text.
if "PARAMS" not in globals():

    include: "common.smk"


rule calibrate:
    input:
        library=library("workflow/scripts/calibrate.py", "decoding.speculative", *calibration_methods.PLUGS),
        models=lambda w: pair_of(w.reading),
        tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.tuned_on, pair=PARAMS.pair),
        # How often tokens are right is measured in the main format alone: text and drafter are all but the same.
        rates=lambda w: [] if w.dtype == PARAMS.dtype else calibrated(PARAMS.dtype, w.reading)[1],
    output:
        "results/calibration/{reading}{dtype}/costs.json",
        "results/calibration/{reading}{dtype}/steps.json",
    log:
        "logs/calibrate/{reading}{dtype}/tables.log",
    priority: lambda w: turn(w.dtype)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        models=lambda w, input: model_options(input.models),
        start=[PARAMS.sources[dataset].start for dataset in PARAMS.tuned_on],
        sizes=SIZES.calibration.model_dump(),
        prompt_tokens=SIZES.prompt_tokens,
        seed=PARAMS.seed,
        machine=lambda w: machine(w.dtype),
        rates=lambda w, input: f"--rates {Path(input.rates).parent}" if input.rates else "",
        folder=subpath(output[0], parent=True),
    shell:
        "python workflow/scripts/calibrate.py {params.models} --tokens {input.tokens} --start {params.start} "
        "--prompts {params.sizes[prompts]} --prompt-tokens {params.prompt_tokens} "
        "--output-tokens {params.sizes[output_tokens]} --contexts {params.sizes[contexts]} "
        "--repeats {params.sizes[repeats]} --seed {params.seed} {params.machine} {params.rates} --out {params.folder} 2>&1 | tee {log:q}"


# Apart, so that another batch size changes nothing for single requests.
rule calibrate_batches:
    input:
        library=library("workflow/scripts/calibrate_batches.py"),
        models=lambda w: pair_of(w.reading),
        calibration=lambda w: calibrated(w.dtype, w.reading),
    output:
        "results/calibration/{reading}{dtype}/batches.json",
    log:
        "logs/calibrate/{reading}{dtype}/batches.log",
    priority: lambda w: turn(w.dtype, MANY)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        contexts=" ".join(map(str, SIZES.calibration.contexts)),
        repeats=SIZES.calibration.repeats,
        batches=" ".join(map(str, sorted({run.batch for run in RUNS.values()}))),
        machine=lambda w: machine(w.dtype),
    shell:
        "python workflow/scripts/calibrate_batches.py {params.models} --contexts {params.contexts} --repeats {params.repeats} "
        "--batches {params.batches} {params.machine} 2>&1 | tee {log:q}"
