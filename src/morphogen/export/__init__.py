"""Models for other programs: the static page that paints in the visitor's browser."""
