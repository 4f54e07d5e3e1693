"""How features lie on disk, one file for each layout: its reader, and its writer."""
