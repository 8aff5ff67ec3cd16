"""Reading and writing of files: YAML with line numbers, numbers as people write them, JSON, atomic writes."""
