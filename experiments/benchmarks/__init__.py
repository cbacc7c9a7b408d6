"""What takes how long, as ratios within one run on one machine."""
