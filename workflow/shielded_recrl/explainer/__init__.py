"""The language model that explains: base, prompts, LoRA init."""
