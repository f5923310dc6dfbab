"""The plugin of napari (napari.org), declared in napari.yaml: forms that paint, slides, sample data."""
