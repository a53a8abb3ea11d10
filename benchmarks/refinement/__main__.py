import sys

from benchmarks.refinement.run import main

sys.exit(main())
