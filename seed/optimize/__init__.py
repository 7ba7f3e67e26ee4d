"""Optimize: what to try next, and what was worth it. Knows Optuna; nothing of torch."""
