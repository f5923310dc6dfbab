"""What every room shares: the model contracts, keys and coordinate-keyed randomness, errors."""
