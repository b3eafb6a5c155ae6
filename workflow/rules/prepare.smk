# Tokenise, split by document, choose prompts.
include: "common.smk"


rule prepare:
    input:
        script="workflow/scripts/prepare.py",
        library=TEXT,
        documents="data/{dataset}/documents.parquet",
        tokenizer=f"{TARGET}/tokenizer.json",
        settings=f"{TARGET}/tokenizer_config.json",
    output:
        tokens=f"data/{{dataset}}/{PARAMS.pair}/tokens.parquet",
        prompts=f"data/{{dataset}}/{PARAMS.pair}/prompts.parquet",
    params:
        source=lambda w: PARAMS.sources[w.dataset],
        prompts=max(SIZES.prompts, SIZES.sweep_prompts),
        prompt_tokens=SIZES.prompt_tokens,
        reserve=max(SIZES.output_tokens, SIZES.sweep_output_tokens),
        seed=PARAMS.seed,
        model=TARGET,
        folder=f"data/{{dataset}}/{PARAMS.pair}",
    log:
        "logs/prepare/{dataset}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python {input.script} --documents {input.documents} --dataset {wildcards.dataset} --model {params.model} "
        "--evaluation-share {params.source.evaluation_share} --start {params.source.start} --prompts {params.prompts} "
        "--prompt-tokens {params.prompt_tokens} --reserve-tokens {params.reserve} --seed {params.seed} "
        "--out {params.folder} 2>&1 | tee {log:q}"
