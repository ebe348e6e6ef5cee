"""What can go wrong with a cluster. Errors of single files are `vidembed.video`'s."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The Ray cluster cannot be reached or has failed. What was committed to the index stays."""
