"""Held-out evaluation of an explainer: what no reward and no training command may import."""
