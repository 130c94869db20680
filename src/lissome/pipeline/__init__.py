"""The verbs of lissome as functions; the command line only parses and prints.

`fit` is the main job; the others are functions of `lissome.pipeline.verbs` and `.writing`.
"""

from lissome.pipeline.fitting import fit as fit
from lissome.pipeline.loading import load as load
from lissome.pipeline.searching import search as search
from lissome.pipeline.verbs import evaluate as evaluate
from lissome.pipeline.verbs import export as export
from lissome.pipeline.verbs import extract_step as extract_step
from lissome.pipeline.verbs import inspect as inspect
from lissome.pipeline.verbs import inspect_device as inspect_device
from lissome.pipeline.verbs import list_methods as list_methods
from lissome.pipeline.verbs import measure as measure
from lissome.pipeline.verbs import plan as plan
from lissome.pipeline.writing import generate as generate
