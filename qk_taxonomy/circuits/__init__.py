"""Heads, conventions and spectra: pure functions on tensors, with no files, network or drawing."""
