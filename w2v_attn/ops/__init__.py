"""Fast operations outside attention: matrix products, convolutions, the feed-forward, and fused GPU kernels."""
