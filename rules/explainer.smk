# REQUIRED INPUTS: results/data/{dataset}/{train,items,users}.parquet, resources/prompts
# OUTPUTS: results/explainer/{dataset}/embedded/model, results/explainer/{dataset}/{base}/lora-*


rule pretrain:
    input:
        train="results/data/{dataset}/train.parquet",
        catalogue="results/data/{dataset}/items.parquet",
    output:
        directory("results/explainer/{dataset}/embedded/model"),
    log:
        "results/logs/explainer/{dataset}/pretrain.log",
    benchmark:
        "results/benchmarks/explainer/{dataset}/pretrain.tsv"
    conda:
        "../envs/explainer.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=subpath(input.train, parent=True),
        settings=flags(CONFIG.explainer.pretrain),
        prompt=flags(section(CONFIG.explainer, PromptSettings)),
        explanation=CONFIG.explainer.explanation_tokens,
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS + content(f"{TEMPLATES}/explanations.yaml"),
        code=code_digest("shielded_recrl.explainer.pretrain"),
    message:
        "Train the embedded base LM of {wildcards.dataset}"
    shell:
        "python -m shielded_recrl.explainer pretrain --data {params.data} "
        "--templates {params.templates} --out {output} --seed {params.seed} {params.settings} "
        "{params.prompt} --explanation-tokens {params.explanation} 2>&1 | tee {log}"


rule fetch:
    output:
        directory("resources/models/{repository}"),
    log:
        "results/logs/explainer/fetch/{repository}.log",
    benchmark:
        "results/benchmarks/explainer/fetch/{repository}.tsv"
    retries: 2
    conda:
        "../envs/explainer.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
    params:
        hub=lambda w: w.repository.replace("--", "/"),
        revision=lambda w: (STUDY.revisions() | BRANCH.revisions())[w.repository],
    message:
        "Download {params.hub} at {params.revision}"
    shell:
        "python -m shielded_recrl.explainer fetch --repository {params.hub} "
        "--revision {params.revision} --out {output} 2>&1 | tee {log}"


rule init_lora:
    input:
        base=lambda w: placed(STUDY.base_inputs(w.dataset, w.base)),
    output:
        directory("results/explainer/{dataset}/{base}/{lora,lora-[^/]+}"),
    log:
        "results/logs/explainer/{dataset}/{base}/{lora}.log",
    benchmark:
        "results/benchmarks/explainer/{dataset}/{base}/{lora}.tsv"
    conda:
        "../envs/explainer.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
    params:
        base=base_folder,
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        lora=lambda w: STUDY.lora_flags[w.lora],
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.explainer.init"),
    message:
        "Initialise {wildcards.lora} for {wildcards.dataset}, base {wildcards.base}"
    shell:
        "python -m shielded_recrl.explainer init --base {params.base} --out {output} "
        "--templates {params.templates} {params.precision} {params.lora} "
        "--seed {params.seed} 2>&1 | tee {log}"
