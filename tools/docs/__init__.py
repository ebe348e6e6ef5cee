"""What builds the documentation site: see `mkdocs.yml`."""
