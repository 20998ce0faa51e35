"""Moments, densities and trends: pure functions on arrays, with no files and no drawing."""
