"""``python -m pipeline.cli`` is the same as ``cai``."""

import sys

from pipeline.cli import main

if __name__ == "__main__":  # processes that vLLM starts may import this file
    sys.exit(main())
