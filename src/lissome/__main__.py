"""``python -m lissome``: the same as the command ``lissome``."""

import sys

from lissome.cli.main import main

sys.exit(main())
