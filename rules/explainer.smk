# REQUIRED INPUTS: results/data/{dataset}/{train,items,users}.parquet, resources/prompts
# OUTPUTS: results/explainer/{dataset}/embedded/model, results/explainer/{dataset}/{base}/lora-*


rule pretrain:
    input:
        SPLITS,
        templates=[*TEMPLATE_FILES, f"{TEMPLATES}/explanations.yaml"],
    output:
        directory("results/explainer/{dataset}/embedded/model"),
    log:
        "results/logs/explainer/{dataset}/pretrain.log",
    benchmark:
        "results/benchmarks/explainer/{dataset}/pretrain.tsv"
    params:
        settings=flags(STUDY.explainer.pretrain),
        prompt=flags(section(STUDY.explainer, PromptSettings)),
        explanation=STUDY.explainer.explanation_tokens,
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.explainer.pretrain"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/explainer.yaml"
    message:
        "Train the embedded base LM of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.explainer pretrain --data results/data/{wildcards.dataset} "
        "--templates {TEMPLATES} --out {output} --seed {params.seed} {params.settings} "
        "{params.prompt} --explanation-tokens {params.explanation} 2>&1 | tee {log}"


rule fetch:
    output:
        directory("resources/models/{repository}"),
    log:
        "results/logs/explainer/fetch/{repository}.log",
    benchmark:
        "results/benchmarks/explainer/fetch/{repository}.tsv"
    params:
        hub=lambda w: w.repository.replace("--", "/"),
        revision=lambda w: {e.base.replace("/", "--"): e.revision for e in BASES.values()}[
            w.repository
        ],
    retries: 2
    threads: 1
    resources:
        mem_mb=1000,
    conda:
        "../envs/explainer.yaml"
    message:
        "Download {params.hub} at {params.revision}"
    shell:
        "python -m shielded_recrl.explainer fetch --repository {params.hub} "
        "--revision {params.revision} --out {output} 2>&1 | tee {log}"


rule init_lora:
    input:
        base=base_input,
    output:
        directory("results/explainer/{dataset}/{base}/lora-r{rank}-a{alpha}"),
    log:
        "results/logs/explainer/{dataset}/{base}/lora-r{rank}-a{alpha}.log",
    benchmark:
        "results/benchmarks/explainer/{dataset}/{base}/lora-r{rank}-a{alpha}.tsv"
    params:
        base=base_folder,
        precision=precision_flag,
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.explainer.init"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
    conda:
        "../envs/explainer.yaml"
    message:
        "Initialise LoRA rank {wildcards.rank} for {wildcards.dataset}, base {wildcards.base}"
    shell:
        "python -m shielded_recrl.explainer init --base {params.base} --out {output} "
        "{params.precision} --lora-rank {wildcards.rank} --lora-alpha {wildcards.alpha} "
        "--seed {params.seed} 2>&1 | tee {log}"
