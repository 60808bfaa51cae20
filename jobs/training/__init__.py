"""Making model versions: data to learn from, fitting, converting, measuring, promoting."""
