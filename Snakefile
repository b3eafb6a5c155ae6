# The whole chain: text and models in, raw records, tables and figures out. `snakemake --cores 1 all`

from snakemake.utils import min_version

# The one that the tests run; earlier ones of this major version were not tried.
min_version("9.27")


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


# What DVC would run is another graph then; this one is not the worse for it.
if shape.is_stale(Path.cwd(), PARAMS, NEEDS, CODE):
    print(f"warning: {shape.STALE}", file=sys.stderr)


localrules:
    all,
    models,
    library,
    library_of_source,
    library_of_rules,
    data,
    runs,


rule all:
    default_target: True
    input:
        "results/metrics.json",
        "results/drafter_report.json",
        list(RULE_SUMS.values()),
        expand("figures/{figure}.{suffix}", figure=PARAMS.figures, suffix=FIGURE_FILES),
        ["figures/replay.svg"] if TIMELINE else [],


rule models:
    input:
        [f"{model}/manifest.json" for model in (TARGET, DRAFTER, FEATURES) if model],


rule data:
    input:
        [f"data/prompts/{PARAMS.pair}/{length}/{dataset}.parquet" for length, dataset in PROMPTS],


rule runs:
    input:
        expand("results/{run}/{file}", run=RUNS, file=RECORDS),
