"""The rows of published tables: ``python -m benchmarks.reproduce --table TABLE``"""
