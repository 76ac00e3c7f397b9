"""`python -m embedrag COMMAND …`."""

import sys

from embedrag.cli import main

sys.exit(main())
