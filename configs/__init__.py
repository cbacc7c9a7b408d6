"""Settings of a run: `get_config(variant)` of each file returns a ConfigDict."""
