"""What made the files that the package ships; not part of the wheel. Run from the root of the repository."""
