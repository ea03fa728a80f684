"""Git LFS on the object store: an LFS object id is the digest of a blob, so both are one object.

Two ways lead there. The transfer agent moves objects between a clone and the store without any server: what our own
workers use. The server side speaks the LFS API for plain ``git lfs`` clients; its HTTP application is in ``web``.
"""
