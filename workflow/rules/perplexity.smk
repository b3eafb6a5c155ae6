# Perplexity of the data sets under the target, in each format that decodes them. (That of outputs: generate.smk.)
if "PARAMS" not in globals():

    include: "common.smk"


rule perplexity:
    input:
        library=library("workflow/scripts/perplexity.py"),
        target=f"{TARGET}/manifest.json",
        tokens=f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        "results/perplexity/{dtype}/{dataset}.json",
    log:
        "logs/perplexity/{dtype}/{dataset}.log",
    priority: lambda w: turn(w.dtype)
    conda:
        "../envs/dynatree.yaml"
    params:
        target=subpath(input.target, parent=True),
        limit=SIZES.perplexity_tokens,
        window=SIZES.perplexity_window,
        stride=SIZES.perplexity_stride,
        machine=lambda w: machine(w.dtype),
    shell:
        "python workflow/scripts/perplexity.py --target {params.target} --tokens {input.tokens} --dataset {wildcards.dataset} "
        "--limit {params.limit} --window {params.window} --stride {params.stride} {params.machine} --out {output} "
        "2>&1 | tee {log:q}"
