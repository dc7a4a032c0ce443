# REQUIRED INPUTS: results/data/{dataset}/*.parquet
# OUTPUTS: results/ranker/{dataset}/{model,states}.safetensors, train.jsonl, metrics.json


rule train_ranker:
    input:
        SPLITS,
    output:
        model="results/ranker/{dataset}/model.safetensors",
        curve="results/ranker/{dataset}/train.jsonl",
    log:
        "results/logs/ranker/{dataset}/train.log",
    benchmark:
        "results/benchmarks/ranker/{dataset}/train.tsv"
    params:
        settings=flags(STUDY.ranker),
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.ranker.train"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/ranker.yaml"
    message:
        "Train SASRec on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker train --data results/data/{wildcards.dataset} "
        "--out results/ranker/{wildcards.dataset} --seed {params.seed} {params.settings} "
        "2>&1 | tee {log}"


rule evaluate_ranker:
    input:
        SPLITS,
        model="results/ranker/{dataset}/model.safetensors",
    output:
        metrics="results/ranker/{dataset}/metrics.json",
        states="results/ranker/{dataset}/states.safetensors",
    log:
        "results/logs/ranker/{dataset}/evaluate.log",
    benchmark:
        "results/benchmarks/ranker/{dataset}/evaluate.tsv"
    params:
        code=code_digest("shielded_recrl.ranker.evaluate"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
    conda:
        "../envs/ranker.yaml"
    message:
        "Evaluate SASRec on {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.ranker evaluate --data results/data/{wildcards.dataset} "
        "--model {input.model} --out results/ranker/{wildcards.dataset} 2>&1 | tee {log}"
