"""Tables of strangers: JSON lines, CSV and JSON arrays row by row; Parquet and Arrow through a guarded process."""
