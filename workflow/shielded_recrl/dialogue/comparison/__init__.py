"""The comparison of supervised, best-of-N and RL responses."""
