from benchmarks.refinement.run import main

main()
