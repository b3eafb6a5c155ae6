# Fetch text as documents, and the target as a model folder.
if "PARAMS" not in globals():

    include: "common.smk"


rule download_data:
    input:
        library="results/library/sources/{dataset}.sha256",
    output:
        "data/documents/{dataset}.parquet",
    log:
        "logs/download_data/{dataset}.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    params:
        kind=lambda w: PARAMS.sources[w.dataset].kind,
        source=lambda w: json.dumps(PARAMS.sources[w.dataset].origin),
    shell:
        "python workflow/scripts/download_data.py --kind {params.kind} --source {params.source:q} --cache .cache/downloads --out {output} 2>&1 | tee {log:q}"


rule download_model:
    input:
        library=library("workflow/scripts/download_model.py"),
    output:
        expand("{model}/{file}", model=TARGET, file=MODEL_FILES),
    log:
        "logs/download_model/target.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    params:
        source=json.dumps(PAIR.target),
        seed=PARAMS.seed,
        folder=subpath(output[0], parent=True),
    shell:
        "python workflow/scripts/download_model.py --source {params.source:q} --seed {params.seed} --cache .cache/downloads --out {params.folder} 2>&1 | tee {log:q}"
