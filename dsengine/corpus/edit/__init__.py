"""New corpora out of old ones: what merge, append and convert do, as the plan of a build."""
