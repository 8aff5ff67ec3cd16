"""What others measured: logs of smoothing, results of VNN-COMP, published tables, counts."""
