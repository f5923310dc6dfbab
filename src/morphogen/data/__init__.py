"""Image folders and zips, patches out of slides, built-in and named sets, splits, and the data check."""
