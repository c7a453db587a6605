"""Beds: small real set-ups that miniatures share. One module per kind; see `limbeck.beds.base`."""
