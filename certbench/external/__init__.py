"""Results of others: logs of smoothing, results of VNN-COMP, published tables, counts."""
