# The drafters: trained from the target's layers (or a trained part taken from drafters/), or fetched, as the pair says.
if "PARAMS" not in globals():

    include: "common.smk"


# What both rules are told, and run.
TRAINING = {"seed": PARAMS.seed, "device": PARAMS.device, "work": f".cache/distil/{PARAMS.pair}"}
DISTIL = (
    "python workflow/scripts/distil.py --target {params.target} {params.part} --tokens {input.tokens} "
    "--source {params.source:q} --seed {params.seed} --device {params.device} "
    "--work {params.work} --out {params.folder} 2>&1 | tee {log:q}"
)


if PAIR.drafter["kind"] == "distil":

    rule distil:
        input:
            library=library("workflow/scripts/distil.py"),
            target=f"{TARGET}/manifest.json",
            tokens=training_text(DRAFTER),
            part=shipped(DRAFTER),
        output:
            expand("{model}/{file}", model=DRAFTER, file=drafter_files(PAIR.drafter)),
        log:
            "logs/distil/drafter.log",
        priority: FIRST
        conda:
            "../envs/dynatree.yaml"
        resources:
            exclusive=100,
        params:
            **TRAINING,
            source=json.dumps(PAIR.drafter),
            part=part_option(DRAFTER),
            target=subpath(input.target, parent=True),
            folder=subpath(output[0], parent=True),
        shell:
            DISTIL

else:

    rule download_drafter:
        input:
            library=library("workflow/scripts/download_model.py"),
        output:
            expand("{model}/{file}", model=DRAFTER, file=drafter_files(PAIR.drafter)),
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


# Beside it one that reads the target's states.
if FEATURES:

    rule distil_features:
        input:
            library=library("workflow/scripts/distil.py"),
            target=f"{TARGET}/manifest.json",
            tokens=training_text(FEATURES),
            part=shipped(FEATURES),
        output:
            expand("{model}/{file}", model=FEATURES, file=[*drafter_files(PAIR.features), FUSION]),
        log:
            "logs/distil/features.log",
        priority: FIRST
        conda:
            "../envs/dynatree.yaml"
        resources:
            exclusive=100,
        params:
            **TRAINING,
            source=json.dumps(PAIR.features),
            part=part_option(FEATURES),
            target=subpath(input.target, parent=True),
            folder=subpath(output[0], parent=True),
        shell:
            DISTIL
