"""SASRec: training, evaluation, and the frozen user states and item embeddings."""
