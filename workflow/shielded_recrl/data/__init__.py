"""Raw files to interactions, items, users and train/valid/test splits."""
