"""The verbs that need a file of their own, as the command line and Python call them."""
