# The drafter: trained from the target's layers, or fetched, whichever the pair says.
include: "common.smk"


if PAIR.drafter["kind"] == "distil":

    rule distil:
        input:
            script="workflow/scripts/distil.py",
            library=library("workflow/scripts/distil.py"),
            target=f"{TARGET}/manifest.json",
            tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=PARAMS.datasets, pair=PARAMS.pair),
        output:
            expand("{model}/{file}", model=DRAFTER, file=MODEL_FILES),
        log:
            "logs/distil/drafter.log",
        conda:
            "../envs/dynatree.yaml"
        resources:
            machine=100,
        params:
            source=json.dumps(PAIR.drafter),
            seed=PARAMS.seed,
            target=subpath(input.target, parent=True),
            folder=subpath(output[0], parent=True),
        shell:
            "python {input.script} --target {params.target} --tokens {input.tokens} --source {params.source:q} "
            "--seed {params.seed} --out {params.folder} 2>&1 | tee {log:q}"

else:

    rule download_drafter:
        input:
            script="workflow/scripts/download_model.py",
            library=library("workflow/scripts/download_model.py"),
        output:
            expand("{model}/{file}", model=DRAFTER, file=MODEL_FILES),
        log:
            "logs/download_model/drafter.log",
        conda:
            "../envs/dynatree.yaml"
        params:
            source=json.dumps(PAIR.drafter),
            seed=PARAMS.seed,
            folder=subpath(output[0], parent=True),
        shell:
            "python {input.script} --source {params.source:q} --seed {params.seed} --cache .cache/downloads --out {params.folder} 2>&1 | tee {log:q}"
