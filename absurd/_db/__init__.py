"""One typed value per procedure call, and its arguments and rows on the wire; nothing is executed here."""
