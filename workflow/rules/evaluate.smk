# Audit every output under the target; perplexity of the data sets.
include: "common.smk"


rule evaluate:
    input:
        script="workflow/scripts/evaluate.py",
        library=sorted({*MODEL, *library("audit", "verification/greedy", "text/prompts")}),
        target=f"{TARGET}/manifest.json",
        prompts=f"data/{{dataset}}/{PARAMS.pair}/prompts.parquet",
        outputs="results/{top}/{method}/{settings}/{dataset}/outputs.jsonl",
    output:
        "results/{top}/{method}/{settings}/{dataset}/audit.jsonl",
    params:
        target=TARGET,
        machine=MACHINE,
        folder="results/{top}/{method}/{settings}/{dataset}",
    log:
        "logs/evaluate/{top}/{method}/{settings}/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python {input.script} --target {params.target} --prompts {input.prompts} --run {params.folder} "
        "{params.machine} 2>&1 | tee {log:q}"


rule perplexity:
    input:
        script="workflow/scripts/perplexity.py",
        library=sorted({*MODEL, *library("perplexity")}),
        target=f"{TARGET}/manifest.json",
        tokens=f"data/{{dataset}}/{PARAMS.pair}/tokens.parquet",
    output:
        "results/perplexity/{dataset}.json",
    params:
        target=TARGET,
        limit=SIZES.perplexity_tokens,
        window=SIZES.perplexity_window,
        stride=SIZES.perplexity_stride,
        machine=MACHINE,
    log:
        "logs/perplexity/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python {input.script} --target {params.target} --tokens {input.tokens} --dataset {wildcards.dataset} "
        "--limit {params.limit} --window {params.window} --stride {params.stride} {params.machine} --out {output} "
        "2>&1 | tee {log:q}"
