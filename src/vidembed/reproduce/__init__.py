"""The method's findings, measured on the embedded world: ``vidembed reproduce shapes``."""
