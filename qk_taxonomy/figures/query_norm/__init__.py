"""Figures of the study of query norms: correlations, behaviour of heads, and what predicts it."""
