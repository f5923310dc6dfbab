"""What one cell is and how a grid of cells runs."""
