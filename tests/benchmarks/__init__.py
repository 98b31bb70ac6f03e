"""Speed and memory as ratios within one run (`make bench`); never a timed test."""
