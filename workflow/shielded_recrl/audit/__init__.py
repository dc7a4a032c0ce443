"""Toxicity, popularity and privacy audits of a trained policy."""
