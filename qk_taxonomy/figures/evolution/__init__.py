"""Figures of heads through training."""
