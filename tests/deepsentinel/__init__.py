"""Tests of source deepsentinel; the trees that they read are made in conftest.py."""
