"""Fine-tune an embedding model: `python train.py --help`."""

import sys

from embedrag.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], script=True))
