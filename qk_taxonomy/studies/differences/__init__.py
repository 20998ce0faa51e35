"""Two surveyed models compared head by head: what moved between them, and how far."""
