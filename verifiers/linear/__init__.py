"""Linear relaxations, from intervals to linear and semidefinite programs."""
