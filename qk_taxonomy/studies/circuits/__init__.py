"""Full circuits over the vocabulary: what heads look for, what they write, and which are unusual."""
