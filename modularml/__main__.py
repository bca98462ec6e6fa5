"""Entry point of ``python -m modularml``."""

import sys

from modularml.cli import main

if __name__ == "__main__":
    sys.exit(main())
