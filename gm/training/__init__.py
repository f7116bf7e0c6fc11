"""Training: the step, the loop around it, what a run keeps, and those who watch it."""
