"""Builders of data that the package and the studies hold."""
