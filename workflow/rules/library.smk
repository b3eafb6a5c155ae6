# Checksums of the library files that a script imports, one small file for each set: what a job computes with, told apart
# by content, and a short list for both tools.
include: "common.smk"


rule library:
    input:
        lambda w: library_files(w.group),
    output:
        "results/library/{group}.sha256",
    log:
        "logs/library/{group}.log",
    conda:
        "../envs/dynatree.yaml"
    shell:
        "sha256sum {input} > {output} 2> {log:q}"
