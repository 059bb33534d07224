"""How adapters are trained."""
