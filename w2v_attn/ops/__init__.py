"""Fast operations beside attention: products, convolutions, the feed-forward, and launches that do several steps."""
