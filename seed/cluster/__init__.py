"""Cluster: evaluators as Ray actors, on this machine or many. Alone knows Ray."""
