# Audit every output under the target; perplexity of the data sets.
include: "common.smk"


rule evaluate:
    input:
        script="workflow/scripts/evaluate.py",
        library=sorted({*MODEL, *TEXT, *library("audit", "tree", "verification/greedy")}),
        target=f"{TARGET}/manifest.json",
        prompts=f"data/prompts/{PARAMS.pair}/{{dataset}}.parquet",
        outputs="results/{top}/{method}/{settings}/{dataset}/outputs.jsonl",
    output:
        "results/{top}/{method}/{settings}/{dataset}/audit.jsonl",
    log:
        "logs/evaluate/{top}/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        target=subpath(input.target, parent=True),
        machine=MACHINE,
        folder=subpath(output[0], parent=True),
    shell:
        "python {input.script} --target {params.target} --prompts {input.prompts} --run {params.folder} "
        "{params.machine} 2>&1 | tee {log:q}"


rule perplexity:
    input:
        script="workflow/scripts/perplexity.py",
        library=sorted({*MODEL, *TEXT[:-1], *library("perplexity")}),
        target=f"{TARGET}/manifest.json",
        tokens=f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        "results/perplexity/{dataset}.json",
    log:
        "logs/perplexity/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    params:
        target=subpath(input.target, parent=True),
        limit=SIZES.perplexity_tokens,
        window=SIZES.perplexity_window,
        stride=SIZES.perplexity_stride,
        machine=MACHINE,
    shell:
        "python {input.script} --target {params.target} --tokens {input.tokens} --dataset {wildcards.dataset} "
        "--limit {params.limit} --window {params.window} --stride {params.stride} {params.machine} --out {output} "
        "2>&1 | tee {log:q}"
