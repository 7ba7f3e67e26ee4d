"""Evaluation: what a model is worth: perplexity, latency, tasks."""
