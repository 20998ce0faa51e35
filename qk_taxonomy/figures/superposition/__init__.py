"""Figures of the superposition study, one file a figure."""
