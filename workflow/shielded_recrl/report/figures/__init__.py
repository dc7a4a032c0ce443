"""Figures of the study: one module each, with a function `figure`."""
