"""Energy: what the work of a token is (counts), what it costs (a table with sources), what bounds it."""
