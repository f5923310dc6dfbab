"""How good a model is and whether it memorised: feature networks, distances, likelihoods, reports, comparisons."""
