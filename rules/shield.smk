# REQUIRED INPUTS: a base LM, results/data/{dataset}, results/ranker/{dataset}/states.safetensors
# OUTPUTS: results/shield/{dataset}/{base}/prompt-{tokens}/{readout,bases-*}.safetensors
# With `resources.shards` above 1, jobs of `embed_prefixes` and `collect_moments` run the LM for them.


rule embed_prefixes:
    input:
        splits=SPLITS,
        base=lambda w: placed(STUDY.base_inputs(w.dataset, w.base)),
    output:
        temp(
            directory(
                "results/shield/{dataset}/{base}/prompt-{tokens}/states/"
                "shard-{shard,[0-9]+}-of-{shards,[0-9]+}"
            )
        ),
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/states/shard-{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/states/shard-{shard}-of-{shards}.tsv"
    conda:
        "../envs/shield.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        settings=flags(section(CONFIG.ranking, EmbedSettings)),
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.shield.embed"),
    message:
        "Embed prefixes of {wildcards.dataset}, base {wildcards.base}, prompt {wildcards.tokens}, "
        "shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m shielded_recrl.shield embed --data {params.data} --base {params.base} "
        "--templates {params.templates} --out {output} --shard {wildcards.shard} "
        "--shards {wildcards.shards} {params.precision} {params.prompt} {params.settings} "
        "--seed {params.seed} 2>&1 | tee {log}"


rule fit_readout:
    input:
        unpack(lambda w: STUDY.readout_inputs(w.dataset, w.base, w.tokens)),
        splits=SPLITS,
        base=lambda w: placed(STUDY.base_inputs(w.dataset, w.base)),
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
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        parts=lambda w, input: given(input, "parts"),
        settings=flags(CONFIG.ranking),
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.shield.readout"),
    message:
        "Fit the read-out on {wildcards.dataset}, base {wildcards.base}, prompt {wildcards.tokens}"
    shell:
        "python -m shielded_recrl.shield readout --data {params.data} "
        "--ranker {input.ranker} --base {params.base} --templates {params.templates} "
        "--out {output.readout} {params.precision} {params.prompt} {params.settings} "
        "{params.parts} --seed {params.seed} 2>&1 | tee {log}"


rule collect_moments:
    input:
        unpack(lambda w: STUDY.moments_inputs(w.dataset, w.base, w.tokens, w.moments)),
        splits=SPLITS,
        base=lambda w: placed(STUDY.base_inputs(w.dataset, w.base)),
    output:
        temp(
            directory(
                "results/shield/{dataset}/{base}/prompt-{tokens}/{moments,moments-[^/]+}/"
                "shard-{shard,[0-9]+}-of-{shards,[0-9]+}"
            )
        ),
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/{moments}/shard-{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/{moments}/shard-{shard}-of-{shards}.tsv"
    conda:
        "../envs/shield.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        roles=ROLE_FLAGS,
        ranking=lambda w, input: given(input, "readout", "ranker"),
        settings=lambda w: flags(STUDY.moment_settings[w.moments]),
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.shield.collect"),
    message:
        "Collect {wildcards.moments} of {wildcards.dataset}, base {wildcards.base}, "
        "prompt {wildcards.tokens}, shard {wildcards.shard} of {wildcards.shards}"
    shell:
        "python -m shielded_recrl.shield collect --data {params.data} --base {params.base} "
        "--templates {params.templates} --out {output} --shard {wildcards.shard} "
        "--shards {wildcards.shards} {params.precision} {params.prompt} {params.roles} "
        "{params.ranking} {params.settings} --seed {params.seed} 2>&1 | tee {log}"


rule collect_bases:
    input:
        unpack(lambda w: STUDY.bases_inputs(w.dataset, w.base, w.tokens, w.bases)),
        splits=SPLITS,
        base=lambda w: placed(STUDY.base_inputs(w.dataset, w.base)),
    output:
        "results/shield/{dataset}/{base}/prompt-{tokens}/{bases,bases-[^/]+}.safetensors",
    log:
        "results/logs/shield/{dataset}/{base}/prompt-{tokens}/{bases}.log",
    benchmark:
        "results/benchmarks/shield/{dataset}/{base}/prompt-{tokens}/{bases}.tsv"
    conda:
        "../envs/shield.yaml"
    threads: LM_THREADS
    resources:
        mem_mb=grown(LM_MEM_MB),
        runtime=LM_RUNTIME,
        gpu=LM_GPU,
    params:
        data=data_folder,
        base=base_folder,
        precision=lambda w: f"--precision {STUDY.bases[w.base].precision}",
        prompt=lambda w: STUDY.prompt_flags(w.tokens),
        roles=ROLE_FLAGS,
        ranking=lambda w, input: given(input, "readout", "ranker", "parts"),
        settings=lambda w: flags(STUDY.basis_settings[w.bases]),
        seed=CONFIG.seed,
        templates=TEMPLATES,
        prompts=PROMPTS,
        code=code_digest("shielded_recrl.shield.bases"),
    message:
        "Collect {wildcards.bases} of {wildcards.dataset}, base {wildcards.base}, prompt {wildcards.tokens}"
    shell:
        "python -m shielded_recrl.shield bases --data {params.data} "
        "--base {params.base} --templates {params.templates} --out {output} {params.precision} "
        "{params.prompt} {params.roles} {params.ranking} {params.settings} --seed {params.seed} "
        "2>&1 | tee {log}"
