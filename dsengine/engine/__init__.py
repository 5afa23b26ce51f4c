"""The loop and what it is made of. Nothing here knows a method or an encoder by name."""
