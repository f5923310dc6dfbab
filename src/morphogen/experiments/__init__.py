"""Experiments that train or sample many times: comparisons, expansions of training sets, classification."""
