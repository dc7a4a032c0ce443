"""Shielded RecRL: train a recommender's explanations, prove what that did to its ranking."""

__version__ = "0.1.0"
