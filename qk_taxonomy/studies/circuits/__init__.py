"""The study of full circuits over the vocabulary: what heads look for and what they write."""
