"""Certifiers that are wrong on purpose, one of each kind, and which of the referees tells.

Each is run in a suite beside a complete certifier. `CAUGHT` says who has to notice: the attacks of `certbench audit`,
its cross-audit, the closed form of the contract suite (on a linear classifier), or `certbench check`, which refuses the
file that the certifier would have liked to write.
"""
