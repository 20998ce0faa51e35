"""From spectra files to figures and tables on disk: what commands and notebooks call."""

from qk_taxonomy.outputs.boxes import generate_stat_boxplots as generate_stat_boxplots
from qk_taxonomy.outputs.classes import generate_cluster_figures as generate_cluster_figures
from qk_taxonomy.outputs.hypotheses import generate_hypothesis_tests as generate_hypothesis_tests
