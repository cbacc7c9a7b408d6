"""A page in the browser for films of a user's own: python -m covjax.app."""
