"""Proxy: a candidate in, its cheap scores out."""
