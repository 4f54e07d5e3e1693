"""Feature files: opening, selecting, pooling and converting them."""
