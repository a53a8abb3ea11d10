import sys

from benchmarks.reproduce.run import main

sys.exit(main())
