"""The whole pipeline (``run.py``); speed, studies, refinement and published rows, a room each."""
