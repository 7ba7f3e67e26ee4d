"""Scoring: a candidate in, an evaluation out. Knows torch; nothing of Optuna or Plotly."""
