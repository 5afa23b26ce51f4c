"""A small archive on loopback: search pages and range requests as the real ones answer, and as they answer on a bad day."""
