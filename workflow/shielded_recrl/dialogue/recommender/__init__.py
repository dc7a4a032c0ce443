"""The recommender of both stages: evidence, vectors, training, metrics."""
