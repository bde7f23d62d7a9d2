"""`python -m aioredismq`: the command line; `_cli` has it all."""

from __future__ import annotations

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main())
