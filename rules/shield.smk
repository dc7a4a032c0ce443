# REQUIRED INPUTS: a base LM, results/data/{dataset}, results/ranker/{dataset}/states.safetensors
# OUTPUTS: results/shield/{dataset}/{base}/prompt-{tokens}/{readout,bases-*}.safetensors


rule fit_readout:
    input:
        SPLITS,
        TEMPLATE_FILES,
        base=base_input,
        ranker="results/ranker/{dataset}/states.safetensors",
    output:
        readout="results/shield/{dataset}/{base}/prompt-{tokens}/readout.safetensors",
        curve="results/shield/{dataset}/{base}/prompt-{tokens}/readout.json",
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/readout.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/readout.tsv"
    params:
        base=base_folder,
        precision=precision_flag,
        prompt=prompt_flags,
        settings=flags(STUDY.ranking),
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.shield.readout"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/shield.yaml"
    message:
        "Fit the read-out on {wildcards.dataset}, base {wildcards.base}"
    shell:
        "python -m shielded_recrl.shield readout --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --templates {TEMPLATES} "
        "--out {output.readout} {params.precision} {params.prompt} {params.settings} "
        "--seed {params.seed} 2>&1 | tee {log}"


rule collect_bases:
    input:
        SPLITS,
        TEMPLATE_FILES,
        base=base_input,
    output:
        "results/shield/{dataset}/{base}/prompt-{tokens}/bases-{energy}.safetensors",
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/bases-{energy}.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/bases-{energy}.tsv"
    params:
        base=base_folder,
        precision=precision_flag,
        prompt=prompt_flags,
        roles=ROLE_FLAGS,
        seed=STUDY.seed,
        code=code_digest("shielded_recrl.shield.bases"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/shield.yaml"
    message:
        "Collect the bases of {wildcards.dataset}, energy {wildcards.energy}"
    shell:
        "python -m shielded_recrl.shield bases --data results/data/{wildcards.dataset} "
        "--base {params.base} --templates {TEMPLATES} --out {output} {params.precision} "
        "{params.prompt} {params.roles} --energy {wildcards.energy} --seed {params.seed} "
        "2>&1 | tee {log}"
