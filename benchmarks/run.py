"""The benchmark is ``bgl train``: the same function, for a clone that is not installed.

Several processes train as one: ``torchrun --nproc-per-node=N benchmarks/run.py ...``.
"""

import sys

from bgl.pipeline import main

if __name__ == "__main__":
    sys.exit(main(program=f"python {sys.argv[0]}"))
