"""From spectra files to figures and tables on disk: what commands and notebooks call."""
