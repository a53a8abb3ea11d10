"""Methods compared over seeds: ``python -m benchmarks.studies STUDY``"""
