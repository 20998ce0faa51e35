"""The taxonomy of heads: spectra in, classes and maps out."""

from qk_taxonomy.taxonomy.classes import N_BINS as N_BINS
from qk_taxonomy.taxonomy.classes import N_CLUSTERS as N_CLUSTERS
from qk_taxonomy.taxonomy.classes import HeadClass as HeadClass
from qk_taxonomy.taxonomy.classes import Taxonomy as Taxonomy
from qk_taxonomy.taxonomy.classes import classify_heads as classify_heads
from qk_taxonomy.taxonomy.classes import describe_classes as describe_classes
from qk_taxonomy.taxonomy.classes import map_heads as map_heads
from qk_taxonomy.taxonomy.classes import sort_into_classes as sort_into_classes
