"""Make ``python -m modularml`` the command line."""

import sys

from modularml.cli import main

if __name__ == "__main__":
    sys.exit(main())
