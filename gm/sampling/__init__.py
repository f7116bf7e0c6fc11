"""Samplers, schedules, guidance and preconditioning."""
