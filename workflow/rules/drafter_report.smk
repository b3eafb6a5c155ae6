# How good the drafter is on its own, on evaluation text.
if "PARAMS" not in globals():

    include: "common.smk"


rule drafter_report:
    input:
        library=library("workflow/scripts/drafter_report.py"),
        models=pair_of(READS),
        calibration=CALIBRATION,
        tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.datasets, pair=PARAMS.pair),
    output:
        "results/drafter_report.json",
    log:
        "logs/drafter_report/report.log",
    priority: turn(PARAMS.dtype)
    conda:
        "../envs/dynatree.yaml"
    resources:
        exclusive=100,
    params:
        models=lambda w, input: model_options(input.models, input.calibration),
        limit=SIZES.drafter_report_tokens,
        length=2 * SIZES.prompt_tokens,
        machine=MACHINE,
    shell:
        "python workflow/scripts/drafter_report.py {params.models} --tokens {input.tokens} --limit {params.limit} "
        "--length {params.length} {params.machine} --out {output} 2>&1 | tee {log:q}"
