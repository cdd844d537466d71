"""Anonymous authorisation of channels by tokens and tickets."""
