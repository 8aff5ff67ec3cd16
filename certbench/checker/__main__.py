"""`python -m certbench.checker FILE...`."""

import sys

from certbench.checker import main

sys.exit(main())
