"""What people have (a folder, a manifest, a corpus in its own layout, a data set) -> rows, one for each recording."""
