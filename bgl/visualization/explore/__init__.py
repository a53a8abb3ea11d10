"""The command ``python -m bgl.visualization.explore``; the function is in ``explorer.py``."""
