"""Empathetic recommendation dialogues: emotions, recommender, response LM, critic and RL."""
