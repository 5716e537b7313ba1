"""What a notebook, a script or a terminal calls; underneath are the same assets and library as in a deployment."""
