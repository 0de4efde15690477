"""Run the command line with `python -m robustspike.bench.cli`."""

from robustspike.bench.cli import main

main()
