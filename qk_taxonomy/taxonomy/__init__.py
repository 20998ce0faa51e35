"""The taxonomy of heads: spectra in, classes and maps out."""

from qk_taxonomy.taxonomy.agreement import Agreement as Agreement
from qk_taxonomy.taxonomy.agreement import class_agreement as class_agreement
from qk_taxonomy.taxonomy.assign import Assignment as Assignment
from qk_taxonomy.taxonomy.assign import assign_heads as assign_heads
from qk_taxonomy.taxonomy.choice import ClusterChoice as ClusterChoice
from qk_taxonomy.taxonomy.choice import ClusterQuality as ClusterQuality
from qk_taxonomy.taxonomy.choice import choose_n_clusters as choose_n_clusters
from qk_taxonomy.taxonomy.choice import cluster_quality as cluster_quality
from qk_taxonomy.taxonomy.classes import HeadClass as HeadClass
from qk_taxonomy.taxonomy.classes import Taxonomy as Taxonomy
from qk_taxonomy.taxonomy.classes import classify_heads as classify_heads
from qk_taxonomy.taxonomy.classes import joint_taxonomy as joint_taxonomy
from qk_taxonomy.taxonomy.partition import sort_into_classes as sort_into_classes
from qk_taxonomy.taxonomy.pool import chosen_models as chosen_models
from qk_taxonomy.taxonomy.saved import SavedTaxonomy as SavedTaxonomy
from qk_taxonomy.taxonomy.saved import load_taxonomy as load_taxonomy
from qk_taxonomy.taxonomy.saved import taxonomy_bytes as taxonomy_bytes
from qk_taxonomy.taxonomy.spaces import space_of as space_of
