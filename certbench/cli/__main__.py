"""`python -m certbench.cli`."""

from certbench.cli import main

main()
