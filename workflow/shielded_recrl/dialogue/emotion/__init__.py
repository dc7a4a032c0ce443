"""Emotions of texts: labels, classifier, word list, and how well they fit."""
