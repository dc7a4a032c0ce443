"""Rewards: plain Python over responses. One protocol, one weighted sum, and what is shipped.

| module | |
|---|---|
| `base` | the `Reward` protocol and the weighted sum, `Composite` |
| `explanation` | the composite reward of an explanation |
| `reading` | an explanation taken apart once: words, claims, what supports them |
| `similarity` | relevance by embeddings, no model of its own |
| `click` | the click model of training, apart from the simulator of the evaluation |
| `plain` | rewards of the plain RLHF loop: sentiment, phrase endings, length penalty |
| `critic` | a frozen learned reward critic |
"""
