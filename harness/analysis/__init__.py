"""Questions asked of records: pairing, references, intervals, tables."""
