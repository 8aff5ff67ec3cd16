"""Results and problems of others: logs of smoothing, VNN-COMP, published tables, counts."""
