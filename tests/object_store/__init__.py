"""Corpora in an object store: moto's S3 server on loopback, and a proxy before it that misbehaves on request."""
