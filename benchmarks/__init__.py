"""Every speed figure of the README, side by side with its peers. Ratios within one run; absolute figures jitter."""
