"""The engine that certifiers share: regions, intervals, backward bounds, slopes, rounding, LP rows, proofs."""
