"""Moments, densities, trends and tests between models: pure functions on arrays."""
