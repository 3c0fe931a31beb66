"""The only package that touches vLLM."""
