"""Which explanation readers prefer: a blinded sheet of pairs, and what the filled sheets say."""
