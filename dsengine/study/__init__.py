"""Many runs at once, and what is shown of them."""
