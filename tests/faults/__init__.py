"""Plug-ins that go wrong on purpose, at a step that is asked for."""
