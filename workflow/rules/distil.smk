# The drafter: trained from the target's layers (or its trained part taken from drafters/), or fetched, as the pair says.
if "PARAMS" not in globals():

    include: "common.smk"


# Without a trained part in the checkout, or with distil.retrain, it is trained.
PART = Path("drafters", PARAMS.pair)
SHIPPED = [] if PARAMS.distil.retrain else sorted(map(str, PART.glob("*.*")))
READS = [FUSION] if PAIR.drafter.get("reads") else []


if PAIR.drafter["kind"] == "distil":

    rule distil:
        input:
            library=library("workflow/scripts/distil.py"),
            target=f"{TARGET}/manifest.json",
            tokens=expand("data/tokens/{pair}/{dataset}.parquet", dataset=trained_on(PART, SHIPPED), pair=PARAMS.pair),
            part=SHIPPED,
        output:
            expand("{model}/{file}", model=DRAFTER, file=[*DRAFTER_FILES, *READS]),
        log:
            "logs/distil/drafter.log",
        priority: FIRST
        conda:
            "../envs/dynatree.yaml"
        resources:
            exclusive=100,
        params:
            source=json.dumps(PAIR.drafter),
            seed=PARAMS.seed,
            device=PARAMS.device,
            work=f".cache/distil/{PARAMS.pair}",
            part=f"--part {PART}" if SHIPPED else "",
            target=subpath(input.target, parent=True),
            folder=subpath(output[0], parent=True),
        shell:
            "python workflow/scripts/distil.py --target {params.target} {params.part} --tokens {input.tokens} "
            "--source {params.source:q} --seed {params.seed} --device {params.device} "
            "--work {params.work} --out {params.folder} 2>&1 | tee {log:q}"

else:

    rule download_drafter:
        input:
            library=library("workflow/scripts/download_model.py"),
        output:
            expand("{model}/{file}", model=DRAFTER, file=DRAFTER_FILES),
        log:
            "logs/download_model/drafter.log",
        priority: FIRST
        conda:
            "../envs/dynatree.yaml"
        params:
            source=json.dumps(PAIR.drafter),
            seed=PARAMS.seed,
            folder=subpath(output[0], parent=True),
        shell:
            "python workflow/scripts/download_model.py --source {params.source:q} --drafter --seed {params.seed} --cache .cache/downloads --out {params.folder} 2>&1 | tee {log:q}"
