"""What remains of every inspection: its record in a database, its pictures on disk, and what a person said of it.

The way of a record: ``RecordSink`` -> ``Journal`` (before the answer) -> ``Writer`` -> ``Database`` (after it).
"""
