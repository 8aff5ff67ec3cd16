"""Reading and writing: YAML with lines, numbers as people write them, JSON, atomic writes."""
