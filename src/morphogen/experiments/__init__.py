"""What trains or samples many times to find something out: comparisons, expansions of training sets, classification."""
