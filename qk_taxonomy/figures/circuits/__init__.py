"""Figures of full circuits over the vocabulary, one file a figure."""
