"""Records become figures, and figures become one page that needs nothing else."""
