"""Global and local Lipschitz constants."""
