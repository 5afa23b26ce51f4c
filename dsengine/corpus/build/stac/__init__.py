"""Archives with a STAC search API: providers, what their items mean, and patches cut from their rasters."""
