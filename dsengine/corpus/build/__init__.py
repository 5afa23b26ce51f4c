"""Making corpora: `grid` places patches, `writer` puts them on disk, `metadata` describes them."""
