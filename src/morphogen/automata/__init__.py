"""The cellular automata: the state of a cell, and how a grid of cells runs."""
