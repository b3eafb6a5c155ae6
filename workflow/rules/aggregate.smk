# Raw records of the runs asked for, and no others, into tables, and what is read of them at a glance.
if "PARAMS" not in globals():

    include: "common.smk"


TIMELINE, MEMORY = ([folder for folder, run in PASSES.items() if run.top == top] for top in ("timeline", "memory"))

# The main format has all data sets.
TEXTS = sorted(
    {*((PARAMS.dtype, dataset) for dataset in PARAMS.datasets), *((run.dtype, run.dataset) for run in RUNS.values())}
)
COSTS = [*(calibrated(dtype, READS)[0] for dtype in FORMATS), *([BATCHES] if BATCHED else [])]
# Those of other drafters and formats, which runs used but no table has: they must be of the same machine, too.
USED = {
    path for run in [*RUNS.values(), *PASSES.values()] for path in calibration(run) if Path(path).name != "steps.json"
}
MADE_APART = {table for tables in APART.values() for table in tables}


rule aggregate:
    input:
        library=library("workflow/scripts/aggregate.py"),
        runs=expand("results/{run}/{file}", run=RUNS, file=RECORDS),
        timeline=[f"results/{folder}/phases.json" for folder in TIMELINE],
        memory=[f"results/{folder}/memory.json" for folder in MEMORY],
        costs=COSTS,
        calibrations=sorted(USED - {*COSTS}),
        drafter="results/drafter_report.json",
        perplexity=[f"results/perplexity/{dtype}/{dataset}.json" for dtype, dataset in TEXTS],
        tokenizer=f"{TARGET}/tokenizer.json",
    output:
        tables=expand("results/{table}.parquet", table=[name for name in TABLES if name not in MADE_APART]),
        metrics="results/metrics.json",
        pace="results/pace.json",
        plots=expand("results/plots/{table}.json", table=PLOTS),
    log:
        "logs/aggregate/tables.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        runs=[f"results/{run}" for run in RUNS],
        timeline=[f"results/{folder}" for folder in TIMELINE],
        memory=[f"results/{folder}" for folder in MEMORY],
        model=subpath(input.tokenizer, parent=True),
    shell:
        "python workflow/scripts/aggregate.py --runs {params.runs} --timeline {params.timeline} --memory {params.memory} "
        "--perplexity {input.perplexity} "
        "--costs {input.costs} --calibrations {input.calibrations} --drafter {input.drafter} "
        "--model {params.model} --results results --out results 2>&1 | tee {log:q}"


# What is there so far, where some run fails: tables of the finished runs, with the names of those that are missing.
rule partial:
    input:
        tokenizer=f"{TARGET}/tokenizer.json",
    log:
        "logs/aggregate/partial.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        runs=lambda w: [f"results/{run}" for run in RUNS if complete(run)],
        missing=lambda w: [run for run in RUNS if not complete(run)],
        model=subpath(input.tokenizer, parent=True),
    shell:
        "python workflow/scripts/aggregate.py --runs {params.runs} --missing {params.missing} "
        "--model {params.model} --results results --out results/partial 2>&1 | tee {log:q}"
