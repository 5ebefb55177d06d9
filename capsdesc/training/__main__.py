"""``python -m capsdesc.training``, which ``torchrun -m`` starts in several processes."""

import sys

from capsdesc.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
