# Tokenise and split by document; choose prompts.
if "PARAMS" not in globals():

    include: "common.smk"


rule tokenise:
    input:
        library=library("workflow/scripts/tokenise.py"),
        documents="data/documents/{dataset}.parquet",
        tokenizer=f"{TARGET}/tokenizer.json",
    output:
        f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    log:
        "logs/tokenise/{dataset}.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    params:
        share=lambda w: PARAMS.sources[w.dataset].evaluation_share,
        seed=PARAMS.seed,
        model=subpath(input.tokenizer, parent=True),
    shell:
        "python workflow/scripts/tokenise.py --documents {input.documents} --model {params.model} "
        "--evaluation-share {params.share} --seed {params.seed} --out {output} 2>&1 | tee {log:q}"


rule choose_prompts:
    input:
        library=library("workflow/scripts/choose_prompts.py"),
        tokens=f"data/tokens/{PARAMS.pair}/{{dataset}}.parquet",
    output:
        f"data/prompts/{PARAMS.pair}/{{length}}/{{dataset}}.parquet",
    log:
        "logs/choose_prompts/{length}/{dataset}.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    params:
        start=lambda w: PARAMS.sources[w.dataset].start,
        prompts=lambda w: PROMPTS[w.length, w.dataset],
        seed=PARAMS.seed,
    shell:
        "python workflow/scripts/choose_prompts.py --tokens {input.tokens} --dataset {wildcards.dataset} --start {params.start} "
        "--prompts {params.prompts.number} --prompt-tokens {params.prompts.tokens} --reserve-tokens {params.prompts.reserve} "
        "--seed {params.seed} --out {output} 2>&1 | tee {log:q}"
