"""The command line as `python -m certbench`, where the command is not on the path."""

from certbench.cli import main

if __name__ == "__main__":  # processes of a run import this file again
    main()
