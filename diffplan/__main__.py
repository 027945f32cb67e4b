"""``python -m diffplan`` is the command ``diffplan``."""

import sys

from diffplan.cli import main

if __name__ == "__main__":
    sys.exit(main())
