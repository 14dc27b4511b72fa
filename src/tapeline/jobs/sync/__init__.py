"""Pulls what is new from the providers' REST histories, again and again, from where the ledger's evidence ends."""
