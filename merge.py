"""Merge an adapter into its base model: `python merge.py --help`."""

import sys

from embedrag.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]], script=True))
