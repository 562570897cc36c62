"""Stage props: what a single lesson needs around it and does not teach."""
