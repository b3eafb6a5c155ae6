# Checksums of a script and the library files that it imports, one small file for each set: what a job computes with, a
# short list for both tools. Comments and docstrings change none.
if "PARAMS" not in globals():

    include: "common.smk"


rule library:
    input:
        lambda w: changed_code(library_files(w.group), f"results/library/{w.group}.sha256"),
    output:
        "results/library/{group}.sha256",
    log:
        "logs/library/{group}.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/code_checksums.py {input} --out {output} 2>&1 | tee {log:q}"


# Apart, by data set: another kind of text fetches none of the others anew.
rule library_of_source:
    input:
        lambda w: changed_code(source_files(w.dataset), f"results/library/sources/{w.dataset}.sha256"),
    output:
        "results/library/sources/{dataset}.sha256",
    log:
        "logs/library/sources/{dataset}.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/code_checksums.py {input} --out {output} 2>&1 | tee {log:q}"


# Of each rule with the helpers that it uses, for DVC; Snakemake itself compares a job's command and parameters.
rule library_of_rules:
    input:
        lambda w: changed_rules(),
    output:
        list(RULE_SUMS.values()),
    log:
        "logs/library/rules.log",
    priority: FIRST
    conda:
        "../envs/dynatree.yaml"
    shell:
        "python workflow/scripts/rule_checksums.py --rules workflow/rules --out results/library/rules 2>&1 | tee {log:q}"
