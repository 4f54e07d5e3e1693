"""A name, folder or file becomes a model with every weight accounted for; and the way back to files."""
