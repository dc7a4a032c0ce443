"""Judges of responses: each scores empathy, informativeness, recommendation, engagement, overall.

`rules.Rules()` is what the critic is trained on; `unseen.Unseen.fit(train dialogues)` is seen by no
critic and no reward, and settles comparisons; `llm.Asked` is a language model behind an address.
"""
