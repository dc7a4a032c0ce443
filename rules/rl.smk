# REQUIRED INPUTS: a base LM, a LoRA init, bases, read-out, ranker states, results/data/{dataset}
# OUTPUTS: results/rl/{dataset}/{variant}/seed-{seed}/ with adapter, logs, evaluation and texts

RUN = "results/rl/{dataset}/{variant}/seed-{seed}"


def run_paths(wildcards):
    """Paths a variant depends on."""
    variant = VARIANTS[wildcards.variant]
    explainer, shield = variant.explainer, variant.shield
    name = base_name(explainer)
    shielded = f"results/shield/{wildcards.dataset}/{name}/prompt-{explainer.prompt_tokens}"
    lora = f"lora-r{explainer.lora_rank}-a{explainer.lora_alpha}"
    return {
        "base": base_path(wildcards.dataset, name),
        "adapter": f"results/explainer/{wildcards.dataset}/{name}/{lora}",
        "readout": f"{shielded}/readout.safetensors",
        "bases": f"{shielded}/bases-{shield.energy:g}.safetensors",
    }


def train_input(wildcards):
    """Inputs of training: the bases only where the shield reads them."""
    paths = run_paths(wildcards)
    wanted = ["adapter", *["bases"] * (VARIANTS[wildcards.variant].shield.kind == "nullspace")]
    return {key: paths[key] for key in wanted} | {"base": made(paths["base"])}


def evaluate_input(wildcards):
    """Inputs of evaluation."""
    paths = run_paths(wildcards)
    return {"readout": paths["readout"], "base": made(paths["base"])}


def run_flags(wildcards):
    """Lengths, precision and shield, which training and evaluation share."""
    variant = VARIANTS[wildcards.variant]
    explainer = variant.explainer
    return " ".join(
        [
            flags(section(explainer, PromptSettings)),
            f"--explanation-tokens {explainer.explanation_tokens}",
            f"--precision {explainer.precision}",
            f"--shield {variant.shield.kind}",
        ]
    )


rule train_policy:
    input:
        SPLITS,
        TEMPLATE_FILES,
        unpack(train_input),
        ranker="results/ranker/{dataset}/states.safetensors",
    output:
        adapter=directory(f"{RUN}/adapter"),
        snapshots=f"{RUN}/snapshots.safetensors",
        curve=f"{RUN}/train.jsonl",
        summary=f"{RUN}/summary.json",
    log:
        "results/logs/rl/{dataset}/{variant}/seed-{seed}/train.log",
    benchmark:
        "results/benchmarks/rl/{dataset}/{variant}/seed-{seed}/train.tsv"
    params:
        base=lambda w: run_paths(w)["base"],
        bases=lambda w, input: f"--bases {input.bases}" if "bases" in input.keys() else "",
        lengths=run_flags,
        roles=ROLE_FLAGS,
        settings=lambda w: flags(VARIANTS[w.variant].rl),
        roles_seed=STUDY.seed,
        code=code_digest("shielded_recrl.rl.train"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/rl.yaml"
    message:
        "Train {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.rl train --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --adapter {input.adapter} {params.bases} "
        "--templates {TEMPLATES} --out results/rl/{wildcards.dataset}/{wildcards.variant}/"
        "seed-{wildcards.seed} --scratch results/scratch/rl/{wildcards.dataset}/"
        "{wildcards.variant}/seed-{wildcards.seed} --dataset {wildcards.dataset} "
        "--variant {wildcards.variant} --seed {wildcards.seed} --roles-seed {params.roles_seed} "
        "{params.lengths} {params.roles} {params.settings} 2>&1 | tee {log}"


rule evaluate_policy:
    input:
        SPLITS,
        TEMPLATE_FILES,
        unpack(evaluate_input),
        ranker="results/ranker/{dataset}/states.safetensors",
        adapter=f"{RUN}/adapter",
        snapshots=f"{RUN}/snapshots.safetensors",
        curve=f"{RUN}/train.jsonl",
    output:
        evaluation=f"{RUN}/evaluation.json",
        explanations=f"{RUN}/explanations.jsonl",
        rankings=f"{RUN}/rankings.parquet",
    log:
        "results/logs/rl/{dataset}/{variant}/seed-{seed}/evaluate.log",
    benchmark:
        "results/benchmarks/rl/{dataset}/{variant}/seed-{seed}/evaluate.tsv"
    params:
        base=lambda w: run_paths(w)["base"],
        lengths=run_flags,
        roles=ROLE_FLAGS,
        sampling=flags(STUDY.sampling),
        settings=flags(STUDY.evaluation),
        roles_seed=STUDY.seed,
        code=code_digest("shielded_recrl.rl.evaluate"),
    threads: LM_THREADS
    resources:
        mem_mb=LM_MEM_MB,
        gpu=LM_GPU,
    conda:
        "../envs/rl.yaml"
    message:
        "Evaluate {wildcards.variant} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m shielded_recrl.rl evaluate --data results/data/{wildcards.dataset} "
        "--ranker {input.ranker} --base {params.base} --readout {input.readout} "
        "--templates {TEMPLATES} --run results/rl/{wildcards.dataset}/{wildcards.variant}/"
        "seed-{wildcards.seed} --dataset {wildcards.dataset} --variant {wildcards.variant} "
        "--seed {wildcards.seed} --roles-seed {params.roles_seed} {params.lengths} "
        "{params.roles} {params.sampling} {params.settings} 2>&1 | tee {log}"
