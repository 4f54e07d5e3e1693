"""Features that are on disk: read, converted from one layout to another, selected and pooled."""
