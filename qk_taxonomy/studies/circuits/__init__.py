"""Full circuits over the vocabulary: what heads look for and write, and which are unusual."""
