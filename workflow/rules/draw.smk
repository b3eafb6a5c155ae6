# Figures, each from the tables that it names. The drawings enter the report, in the section that a figure names.
if "PARAMS" not in globals():

    include: "common.smk"


rule draw:
    input:
        library=lambda w: library("workflow/scripts/draw.py", f"figures.{w.figure}"),
        tables=lambda w: [f"results/{table}.parquet" for table in figure_tables(w.figure)],
    output:
        report(
            "figures/{figure}.svg",
            category=lambda w: plugins.load("figures", w.figure).SECTION,
            subcategory=lambda w: getattr(plugins.load("figures", w.figure), "EXPERIMENT", "main runs").replace(
                "_", " "
            ),
            labels=lambda w: {"figure": w.figure.replace("_", " ")},
            caption="../report/figure.rst",
        ),
        [f"figures/{{figure}}.{suffix}" for suffix in FIGURE_FILES if suffix != "svg"],
    log:
        "logs/draw/{figure}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/draw.py --tables results --figure {wildcards.figure} --out figures 2>&1 | tee {log:q}"


# The README's moving picture: the recorded passes of the timeline, side by side.
rule draw_replay:
    input:
        library=library("workflow/scripts/replay.py"),
        tables=[f"results/{table}.parquet" for table in figure_tables("timeline")],
    output:
        "figures/replay.svg",
    log:
        "logs/draw/replay.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/replay.py --tables results --out {output} 2>&1 | tee {log:q}"
