# REQUIRED INPUTS: none (embedded), a download, or the user's raw files
# OUTPUTS: results/data/{dataset}/{interactions,train,valid,test,items,users}.parquet, stats.json


rule download:
    output:
        "resources/raw/{dataset}/{file}",
    log:
        "results/logs/data/{dataset}/download-{file}.log",
    benchmark:
        "results/benchmarks/data/{dataset}/download-{file}.tsv"
    retries: 2
    conda:
        "../envs/download.yaml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        url=lambda w: DOWNLOADS[w.dataset][w.file]["url"],
        sha256=lambda w: DOWNLOADS[w.dataset][w.file]["sha256"],
        size=lambda w: DOWNLOADS[w.dataset][w.file]["bytes"],
    message:
        "Download {wildcards.file} of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.data download --url {params.url} --out {output} "
        "--sha256 {params.sha256} --size {params.size} 2>&1 | tee {log}"


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
        mem_mb=500,
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
        lambda w: STUDY.raw_inputs(w.dataset),
    output:
        expand(
            "results/data/{{dataset}}/{name}.parquet",
            name=["interactions", "train", "valid", "test", "items", "users"],
        ),
        "results/data/{dataset}/stats.json",
    log:
        "results/logs/data/{dataset}/prepare.log",
    benchmark:
        "results/benchmarks/data/{dataset}/prepare.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        raw=lambda w: STUDY.raw_flags(w.dataset),
        settings=lambda w: STUDY.prepare_flags(w.dataset),
        seed=CONFIG.seed,
        code=code_digest("shielded_recrl.data.prepare"),
    message:
        "Prepare {wildcards.dataset}: filter, split, catalogue"
    shell:
        "python -m shielded_recrl.data prepare --dataset {wildcards.dataset} {params.raw} "
        "--out results/data/{wildcards.dataset} --seed {params.seed} {params.settings} 2>&1 | tee {log}"
