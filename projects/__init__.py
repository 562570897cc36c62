"""The three capstones, each a package with its notebooks inside."""
