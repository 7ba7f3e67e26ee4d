"""Stages: what joins the wings. Each does one step of a pass and leaves it in the study's folder."""
