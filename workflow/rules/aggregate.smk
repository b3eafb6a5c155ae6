# Raw records of the runs asked for, and no others, into tables and metrics.json.
include: "common.smk"


rule aggregate:
    input:
        script="workflow/scripts/aggregate.py",
        library=library("workflow/scripts/aggregate.py"),
        runs=expand("results/{run}/{file}", run=RUNS, file=["outputs.jsonl", "timings.json", "audit.jsonl"]),
        timeline=expand("results/{run}/phases.json", run=TIMELINE),
        costs=CALIBRATION[0],
        drafter="results/drafter_report.json",
        perplexity=expand("results/perplexity/{dataset}.json", dataset=PARAMS.datasets),
        tokenizer=f"{TARGET}/tokenizer.json",
    output:
        tables=expand("results/{table}.parquet", table=[name for name in TABLES if name not in APART]),
        metrics="results/metrics.json",
    log:
        "logs/aggregate/tables.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        runs=[f"results/{run}" for run in RUNS],
        timeline=[f"results/{run}" for run in TIMELINE],
        model=subpath(input.tokenizer, parent=True),
    shell:
        "python {input.script} --runs {params.runs} --timeline {params.timeline} --perplexity {input.perplexity} "
        "--costs {input.costs} --drafter {input.drafter} "
        "--model {params.model} --out results 2>&1 | tee {log:q}"
