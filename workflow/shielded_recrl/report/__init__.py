"""The results table, figures and LaTeX tables."""
