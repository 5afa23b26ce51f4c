"""What leaves a run: embeddings of corpora and rasters (`embed`), search in them (`nearest`), and the encoder itself in other forms
(`export_encoder`, `load_encoder`).
"""
