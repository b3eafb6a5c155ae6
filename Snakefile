# The whole chain: text and models in, raw records, tables and figures out. `snakemake --cores 1 all`


include: "workflow/rules/common.smk"
include: "workflow/rules/library.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/distil.smk"
include: "workflow/rules/drafter_report.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/perplexity.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/draw.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    models,
    library,
    data,
    runs,


rule all:
    default_target: True
    input:
        "results/metrics.json",
        "results/drafter_report.json",
        expand("figures/{figure}.{suffix}", figure=PARAMS.figures, suffix=FIGURE_FILES),


rule models:
    input:
        [f"{model}/manifest.json" for model in (TARGET, DRAFTER)],


rule data:
    input:
        [f"data/prompts/{PARAMS.pair}/{length}/{dataset}.parquet" for length, dataset in PROMPTS],


rule runs:
    input:
        expand("results/{run}/{file}", run=RUNS, file=RECORDS),
