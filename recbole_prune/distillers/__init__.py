"""Teacher and student: what a teacher knows, as further losses of a training."""
