"""Files become rows: what is new or changed is embedded, and committed file by file."""
