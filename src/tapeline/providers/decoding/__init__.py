"""How frames become columns: shapes that all providers' decoders share."""
