"""Mask-aware model and trainer subclasses, and everything a resume point holds."""
