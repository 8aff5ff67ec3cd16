"""Certifiers, one file per idea; this table is how they are found.

To add one: write its file (a frozen dataclass with two or three methods), add a line here and a row in
`tests/cases.py`. Another package registers a table of its own under the entry-point group `certbench.verifiers`.
"""

if __name__ != "certbench.verifiers":
    raise ImportError("import certbench.verifiers, not verifiers: a second copy of every class would be made")

TABLE = {
    "lipschitz": "certbench.verifiers.lipschitz:LipschitzMargin",
    "ibp": "certbench.verifiers.lirpa:IBP",
    "crown-ibp": "certbench.verifiers.lirpa:CrownIBP",
    "forward": "certbench.verifiers.lirpa:Forward",
    "forward-backward": "certbench.verifiers.lirpa:ForwardBackward",
    "fast-lin": "certbench.verifiers.lirpa:FastLin",
    "crown": "certbench.verifiers.crown:Crown",
    "crown-lirpa": "certbench.verifiers.lirpa:CrownLirpa",
    "alpha-crown": "certbench.verifiers.crown:AlphaCrown",
    "alpha-crown-lirpa": "certbench.verifiers.lirpa:AlphaCrownLirpa",
    "wong-kolter": "certbench.verifiers.wong_kolter:WongKolter",
    "deepz": "certbench.verifiers.zonotope:DeepZ",
    "hybrid-zonotope": "certbench.verifiers.zonotope:HybridZonotope",
    "lp": "certbench.verifiers.lp:LP",
    "sdp": "certbench.verifiers.sdp:SDP",
    "eclipse": "certbench.verifiers.lipsdp:Eclipse",
    "lipsdp": "certbench.verifiers.lipsdp:LipSDP",
    "masked-product": "certbench.verifiers.masked_product:MaskedProduct",
    "fast-lip": "certbench.verifiers.fast_lip:FastLip",
    "recurjac": "certbench.verifiers.fast_lip:RecurJac",
    "jacobian-zonotope": "certbench.verifiers.jacobian_zonotope:JacobianZonotope",
    "best-of": "certbench.verifiers.best_of:BestOf",
    "branch-and-bound": "certbench.verifiers.branch_and_bound:BranchAndBound",
    "milp": "certbench.verifiers.milp:MILP",
    "soft-smoothing": "certbench.verifiers.soft_smoothing:SoftSmoothing",
    "adaptive-smoothing": "certbench.verifiers.adaptive_smoothing:AdaptiveSmoothing",
    "splitting": "certbench.verifiers.splitting:SplittingSmoothing",
    "deterministic-splitting": "certbench.verifiers.splitting:DeterministicSplitting",
    "discrete": "certbench.verifiers.ablation:DiscreteSmoothing",
    "ablation": "certbench.verifiers.ablation:RandomizedAblation",
    "smoothing": "certbench.verifiers.smoothing:Smoothing",
}
