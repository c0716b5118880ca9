"""`python -m sentexp plan`: what a sweep would do, and what it costs, before it starts."""
