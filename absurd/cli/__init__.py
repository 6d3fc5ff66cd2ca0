"""absurdctl: one module a noun, one module for output. Reads go through `absurd.queries`, writes through the client."""
