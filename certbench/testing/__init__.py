"""The contract suite as a library: the laws that every certifier is held to."""
