"""Proxy: a candidate in, its cheap scores out.

``subset_walker`` computes a candidate's loss, as it stands or by closed form; ``evaluation.perplexity`` sums it by document.
"""
