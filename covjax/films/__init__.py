"""Films of users: what both networks see on one, and what is written of that."""
