import sys

from benchmarks.studies.run import main

sys.exit(main())
