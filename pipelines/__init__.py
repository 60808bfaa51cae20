"""The declarations: one module per pipeline."""
