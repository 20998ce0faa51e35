"""The superposition study: do singular vectors find the features a head attends to?"""
