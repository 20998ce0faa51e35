"""From spectra files to figures and tables on disk: what commands and notebooks call."""

from qk_taxonomy.outputs.assigned import generate_assignments as generate_assignments
from qk_taxonomy.outputs.boxes import generate_stat_boxplots as generate_stat_boxplots
from qk_taxonomy.outputs.classes import generate_cluster_figures as generate_cluster_figures
from qk_taxonomy.outputs.joint import generate_joint_taxonomy as generate_joint_taxonomy
from qk_taxonomy.outputs.taxonomies import save_taxonomy as save_taxonomy
