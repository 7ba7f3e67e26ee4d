"""Distillation: a student and its settings in, its best weights out."""
