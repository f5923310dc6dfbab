"""Images larger than memory, painted tile by tile, exactly as one giant run would paint them."""
