# Figures, each from the tables that it names.
include: "common.smk"


rule draw:
    input:
        script="workflow/scripts/draw.py",
        library=lambda w: library("workflow/scripts/draw.py", f"figures.{w.figure}"),
        tables=lambda w: [f"results/{table}.parquet" for table in figure_tables(w.figure)],
    output:
        expand("figures/{{figure}}.{suffix}", suffix=FIGURE_FILES),
    log:
        "logs/draw/{figure}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python {input.script} --tables results --figure {wildcards.figure} --out figures 2>&1 | tee {log:q}"
