"""What sources that ask a remote archive share: patient requests, windows of remote rasters, pairing, and a journal of decisions."""
