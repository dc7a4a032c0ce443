"""Names of what is compared, and which pairs are. No torch: pages are made of them, too."""

SUPERVISED, BEST, RL, RL_BEST = SYSTEMS = ("supervised", "best_of_n", "rl", "rl_best_of_n")
# What the recommender said; it is scored, and compared with nobody.
GOLD = "gold"
# The first less the second. Only the second pair is of unequal cost.
PAIRS = ((RL, SUPERVISED), (RL, BEST), (RL_BEST, BEST), (BEST, SUPERVISED))


def pair_name(one: str, other: str) -> str:
    """The key of a pair in evaluation.json.

    >>> pair_name("rl", "supervised")
    'rl - supervised'
    """
    return f"{one} - {other}"
