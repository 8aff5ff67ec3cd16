"""The machinery of LipSDP: multipliers, their search, and the proof that a constant holds."""
