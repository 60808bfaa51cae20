"""Files from test data of public packages, read by this project's own readers: `python -m tests.public_files`.

None of them is copied into this repository. They lie in packages that the lock has, or in source packages that pip
gets by version and hash; what comes of each stands in docs/compatibility.md.
"""
