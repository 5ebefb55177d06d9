"""``python -m capsdesc.training``, which ``torchrun -m`` starts in several processes."""

import sys

from capsdesc.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
