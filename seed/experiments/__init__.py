"""Experiments on a finished search, each made of cells that are done once and kept."""
