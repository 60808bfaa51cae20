"""Checks of a pipeline's features, and the page that shows them."""
