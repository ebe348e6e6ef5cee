"""What the package gives today, kept as files: `python -m tests.golden` writes them, `test_golden.py` compares."""
