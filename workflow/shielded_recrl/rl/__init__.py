"""PPO with a value head, rewards, and the held-out evaluation with a click simulator."""
