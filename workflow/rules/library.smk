# Checksums of a script and the library files that it imports, one small file for each set: what a job computes with, a
# short list for both tools. Comments and docstrings change none.
if "PARAMS" not in globals():

    include: "common.smk"


rule library:
    input:
        lambda w: changed_code(w.group),
    output:
        "results/library/{group}.sha256",
    log:
        "logs/library/{group}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/code_checksums.py {input} --out {output} 2>&1 | tee {log:q}"
