"""The kit for `AsyncAbsurd`; the sync twin is generated."""
