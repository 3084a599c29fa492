"""Generation metadata in image files: the record of a request, and how each format carries it."""
