"""What a GPU must reach, case by case: ``python -m benchmarks.gpu``"""
