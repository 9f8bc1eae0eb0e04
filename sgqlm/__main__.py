"""`python -m sgqlm` is the command line."""

import sys

from sgqlm.cli import main

if __name__ == "__main__":
    sys.exit(main.main())
