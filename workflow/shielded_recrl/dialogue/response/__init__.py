"""Responses: prompts, sampling, faults, metrics."""
