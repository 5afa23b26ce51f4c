"""From sample ids to batches: order, chunk reading and decoding, the DALI pipeline, the loader, and its slow oracle."""
