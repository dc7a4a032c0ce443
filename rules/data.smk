# REQUIRED INPUTS: none (embedded), a download, or the user's raw files
# OUTPUTS: results/data/{dataset}/{interactions,train,valid,test,items,users,reviews}.parquet, stats.json, quarantine.jsonl

import re

DATA_FILES = [
    *(f"{name}.parquet" for name in ("interactions", "train", "valid", "test", "items", "users")),
    "reviews.parquet",
    "stats.json",
    "quarantine.jsonl",
]


rule download:
    output:
        "resources/raw/{release}/{file}",
    log:
        "results/logs/data/{release}/download-{file}.log",
    benchmark:
        "results/benchmarks/data/{release}/download-{file}.tsv"
    wildcard_constraints:
        release="|".join(DOWNLOADS),
        # A file without an address is the user's own, also where it lies among the fetched ones.
        file="|".join(sorted({re.escape(Path(path).name) for path in STUDY.fetched})),
    conda:
        "../envs/download.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
    params:
        published=lambda w: STUDY.download_flags(w.release, w.file),
    message:
        "Download {wildcards.file} of {wildcards.release}"
    # The command itself tries again, and goes on where it stopped: its partial file is no output.
    shell:
        "python -m shielded_recrl.data download --out {output} {params.published} 2>&1 | tee {log}"


rule make_world:
    output:
        directory("results/data/{dataset}/raw"),
    log:
        "results/logs/data/{dataset}/world.log",
    benchmark:
        "results/benchmarks/data/{dataset}/world.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
    params:
        settings=flags(CONFIG.world),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.data.world"),
    message:
        "Make the embedded world of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.data world --dataset {wildcards.dataset} --out {output} "
        "--seed {params.seed} {params.settings} 2>&1 | tee {log}"


rule prepare:
    input:
        unpack(lambda w: placed(STUDY.raw_inputs(w.dataset))),
    output:
        expand("results/data/{{dataset}}/{name}", name=DATA_FILES),
    log:
        "results/logs/data/{dataset}/prepare.log",
    benchmark:
        "results/benchmarks/data/{dataset}/prepare.tsv"
    conda:
        "../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=grown(2000),
        runtime=240,
    params:
        raw=lambda w, input: STUDY.raw_flags(w.dataset, dict(input.items())),
        out=subpath(output[0], parent=True),
        settings=lambda w: STUDY.prepare_flags(w.dataset),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.data.prepare"),
    message:
        "Prepare {wildcards.dataset}: filter, split, catalogue"
    shell:
        "POLARS_MAX_THREADS={threads} "
        "python -m shielded_recrl.data prepare --dataset {wildcards.dataset} {params.raw} "
        "--out {params.out} --seed {params.seed} {params.settings} 2>&1 | tee {log}"
