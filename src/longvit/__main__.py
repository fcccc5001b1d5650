"""`python -m longvit …` is `longvit …`; torchrun starts it so: `torchrun --nproc-per-node 8 -m longvit train …`."""

import sys

from longvit.cli import main

sys.exit(main())
