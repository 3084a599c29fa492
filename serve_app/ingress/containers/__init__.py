"""PNG, JPEG and WebP files, taken apart into pixels and metadata without decoding either."""
