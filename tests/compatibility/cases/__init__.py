"""A module for each table of docs/compatibility.md, with its `TABLE`."""
