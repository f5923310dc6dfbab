"""The base of all packages: the model contracts, keys and coordinate-keyed randomness, errors."""
