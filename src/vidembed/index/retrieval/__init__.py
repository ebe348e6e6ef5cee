"""Words find rows: exact, by an ANN index, by compact copies, by a query bank, and reranked."""
