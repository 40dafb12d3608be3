"""`python -m convc.cli`."""

import sys

from convc.cli import main

if __name__ == "__main__":  # a process that multiprocessing makes imports this file under another name
    sys.exit(main())
