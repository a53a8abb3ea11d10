"""Label-free refinement against its peers: ``python -m benchmarks.refinement RUN``"""
