"""Proxy: a candidate in, its cheap scores out. A loss is computed by ``subset_walker``, and summed by ``evaluation.perplexity``."""
