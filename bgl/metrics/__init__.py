"""Retrieval metrics, streamed in bounded memory."""

from bgl.metrics.retrieval import retrieval_metrics

__all__ = ["retrieval_metrics"]
