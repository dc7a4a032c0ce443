# REQUIRED INPUTS: a base LM, results/data/{dataset}, results/ranker/{dataset}/states.safetensors
# OUTPUTS: results/shield/{dataset}/{base}/prompt-{tokens}/{readout,bases-*}.safetensors


rule fit_readout:
    input:
        SPLITS,
        templates=PROMPT_FILES,
        base=lambda w: STUDY.base_inputs(w.dataset, w.base),
        ranker="results/ranker/{dataset}/states.safetensors",
    output:
        readout="results/shield/{dataset}/{base}/prompt-{tokens}/readout.safetensors",
        curve="results/shield/{dataset}/{base}/prompt-{tokens}/readout.json",
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/readout.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/readout.tsv"
    conda:
        "../envs/shield.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    params:
        base=lambda w: STUDY.base_path(w.dataset, w.base),
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        settings=flags(CONFIG.ranking),
        seed=CONFIG.seed,
        templates=lambda w, input: os.path.dirname(input.templates[0]),
        code=code_digest("shielded_recrl.shield.readout"),
    message:
        "Fit the read-out on {wildcards.dataset}, base {wildcards.base}, prompt {wildcards.tokens}"
    shell:
        "python -m shielded_recrl.shield readout --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --templates {params.templates} "
        "--out {output.readout} {params.precision} {params.prompt} {params.settings} "
        "--seed {params.seed} 2>&1 | tee {log}"


rule collect_bases:
    input:
        SPLITS,
        unpack(lambda w: STUDY.bases_inputs(w.dataset, w.base, w.tokens, w.bases)),
        templates=PROMPT_FILES,
        base=lambda w: STUDY.base_inputs(w.dataset, w.base),
    output:
        "results/shield/{dataset}/{base}/prompt-{tokens}/{bases}.safetensors",
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/{bases}.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/{bases}.tsv"
    wildcard_constraints:
        bases="bases-[^/]+",
    conda:
        "../envs/shield.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    params:
        base=lambda w: STUDY.base_path(w.dataset, w.base),
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        roles=ROLE_FLAGS,
        ranking=lambda w, input: given(input, "readout", "ranker"),
        settings=lambda w: flags(STUDY.basis_settings[w.bases]),
        seed=CONFIG.seed,
        templates=lambda w, input: os.path.dirname(input.templates[0]),
        code=code_digest("shielded_recrl.shield.bases"),
    message:
        "Collect {wildcards.bases} of {wildcards.dataset}, base {wildcards.base}, prompt {wildcards.tokens}"
    shell:
        "python -m shielded_recrl.shield bases --data results/data/{wildcards.dataset} "
        "--base {params.base} --templates {params.templates} --out {output} {params.precision} "
        "{params.prompt} {params.roles} {params.ranking} {params.settings} --seed {params.seed} "
        "2>&1 | tee {log}"
