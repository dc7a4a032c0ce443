"""Dialogues: raw files, their damage, their tables, and the embedded world."""
