"""What can go wrong in the store.

StoreError            the store cannot do what was asked (full disk, a bad key)
  MissingArtifact     no such artifact here
  DamagedArtifact     its files are not what its manifest says; it was moved to the quarantine folder
"""


class StoreError(Exception):
    """The store cannot do what was asked; the message says why and what to do."""


class MissingArtifact(StoreError):
    """The store holds no artifact of this digest."""


class DamagedArtifact(StoreError):
    """The artifact's files are not what its manifest says."""
