"""A run: rows -> recordings read ahead -> a model -> results written behind it, and what became of them."""
