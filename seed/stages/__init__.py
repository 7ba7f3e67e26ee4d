"""Stages: each does one step of a pass and leaves what it found in the study's folder."""
