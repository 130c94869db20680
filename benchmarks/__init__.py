"""Claims as experiments: every one runs with baselines beside it, and its results are stored as JSON."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as on the command line: spinning threads ruin a busy machine
