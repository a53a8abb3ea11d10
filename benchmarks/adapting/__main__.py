"""Adapting to unlabelled images against its peers: ``python -m benchmarks.adapting --help``"""

from benchmarks.adapting.run import main

main()
