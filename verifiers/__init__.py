"""Certifiers, one file per idea. They are found by the table below.

To add one: write its file (a frozen dataclass with two or three methods), add a line here and a row in
`tests/cases.py`. Another package registers a table of its own under the entry-point group `certbench.verifiers`.
"""

if __name__ != "certbench.verifiers":
    raise ImportError("import certbench.verifiers, not verifiers: a second copy of every class would be made")

TABLE = {
    "lipschitz": "certbench.verifiers.lipschitz.margin:LayerwiseLipschitz",
    "ibp": "certbench.verifiers.linear.ibp:IBP",
    "crown-ibp": "certbench.verifiers.linear.ibp:CrownIBP",
    "forward": "certbench.verifiers.linear.lirpa.forward:Forward",
    "forward-backward": "certbench.verifiers.linear.lirpa.forward:ForwardBackward",
    "fast-lin": "certbench.verifiers.linear.fast_lin:FastLin",
    "crown": "certbench.verifiers.linear.crown:Crown",
    "alpha-crown": "certbench.verifiers.linear.crown:AlphaCrown",
    "wong-kolter": "certbench.verifiers.linear.wong_kolter:WongKolter",
    "deepz": "certbench.verifiers.linear.zonotope:DeepZ",
    "hybrid-zonotope": "certbench.verifiers.linear.zonotope:HybridZonotope",
    "lp": "certbench.verifiers.linear.lp:LP",
    "sdp": "certbench.verifiers.linear.sdp:SDP",
    "eclipse": "certbench.verifiers.lipschitz.lipsdp:Eclipse",
    "lipsdp": "certbench.verifiers.lipschitz.lipsdp:LipSDP",
    "masked-product": "certbench.verifiers.lipschitz.masked_product:MaskedProduct",
    "fast-lip": "certbench.verifiers.lipschitz.fast_lip:FastLip",
    "recurjac": "certbench.verifiers.lipschitz.fast_lip:RecurJac",
    "jacobian-zonotope": "certbench.verifiers.lipschitz.jacobian_zonotope:JacobianZonotope",
    "best-of": "certbench.verifiers.best_of:BestOf",
    "branch-and-bound": "certbench.verifiers.complete.branch_and_bound:BranchAndBound",
    "milp": "certbench.verifiers.complete.milp:MILP",
    "soft-smoothing": "certbench.verifiers.smoothing.soft:SoftSmoothing",
    "adaptive-smoothing": "certbench.verifiers.smoothing.adaptive:AdaptiveSmoothing",
    "splitting": "certbench.verifiers.smoothing.splitting:SplittingSmoothing",
    "deterministic-splitting": "certbench.verifiers.smoothing.splitting:DeterministicSplitting",
    "discrete": "certbench.verifiers.smoothing.ablation:DiscreteSmoothing",
    "ablation": "certbench.verifiers.smoothing.ablation:RandomizedAblation",
    "smoothing": "certbench.verifiers.smoothing.smoothing:Smoothing",
}
