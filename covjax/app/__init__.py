"""A page in the browser for images of a user's own: python -m covjax.app."""
