# Perplexity of the data sets under the target. (That of outputs: generate.smk.)
if "PARAMS" not in globals():

    include: "common.smk"


rule perplexity:
    input:
        library=library("workflow/scripts/perplexity.py"),
        target=f"{TARGET}/manifest.json",
        tokens=f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        "results/perplexity/{dataset}.json",
    log:
        "logs/perplexity/{dataset}.log",
    priority: turn(PARAMS.dtype)
    conda:
        "../envs/dynatree.yaml"
    params:
        target=subpath(input.target, parent=True),
        limit=SIZES.perplexity_tokens,
        window=SIZES.perplexity_window,
        stride=SIZES.perplexity_stride,
        machine=MACHINE,
    shell:
        "python workflow/scripts/perplexity.py --target {params.target} --tokens {input.tokens} --dataset {wildcards.dataset} "
        "--limit {params.limit} --window {params.window} --stride {params.stride} {params.machine} --out {output} "
        "2>&1 | tee {log:q}"
