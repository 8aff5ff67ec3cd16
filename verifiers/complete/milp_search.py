"""Mixed-integer programs that close the bracket of one input, class by class."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from certbench.attacks.frank_wolfe import Objective, negative_points, slopes, steepest_step
from certbench.attacks.walk import distance, walk_back
from certbench.core import ball
from certbench.core.claims import Outcome
from certbench.core.evidence import Evidence, MilpEvidence
from certbench.errors import SolverError
from certbench.verifiers.bounds.backward import backward, layer_bounds
from certbench.verifiers.bounds.programs import PlanetModel, tightened
from certbench.verifiers.bounds.region import LayerBounds, Region
from certbench.verifiers.bounds.state import NetworkState

FEASIBILITY = 1e-9
"""Tolerance of the solver for rows, bounds, integers and reduced costs; HiGHS takes no less than 1e-10."""


WIDEN = 1e-6
"""Share of a distance that is given away, for the effect of the solver's tolerances on its dual bound. A judgement."""


FARTHEST = 1e4
"""Largest radius that is searched, in units of the input's size (see `ball.size`), if neither a counterexample nor the
border of the domain ends the search."""


BACK = 39
"""Rounds of the walk from a counterexample back to the input. A judgement."""


@dataclass(eq=False)
class Bracket:
    """The bracket of one input, by class, as it closes.

    Attributes:
        proven: proved distance by row: no point of that class is nearer.
        found: distance of the nearest counterexample of that class, by row.
    """

    eps: float | None
    seconds: float
    tolerance: float
    tighten: bool
    state: NetworkState
    x: Float[Tensor, "1 ..."]
    rows: Float[Tensor, "1 k classes"]
    slack: float
    crown: float
    proven: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    programs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    stop: str = ""
    everywhere: bool = False
    contradicted: bool = False

    @property
    def upper(self) -> float:
        """Distance of the nearest counterexample."""
        return min(self.found)

    @property
    def radius(self) -> float:
        """The radius that is proved."""
        return min(self.crown if self.contradicted else max(self.crown, min(self.proven)), self.upper)

    def run(self) -> tuple[Outcome, Evidence]:
        """Attack, then solve inside the ball of the counterexample, or inside growing balls while there is none."""
        self.deadline = time.monotonic() + self.seconds
        self.threat, self.network, self.last = self.state.threat, self.state.network, len(self.state.network.hidden)
        self.flat = self.x.flatten(1)
        count = self.rows.shape[1]
        self.proven, self.found = [self.crown] * count, [math.inf] * count
        eps, widest = self.eps, self.widest()
        if eps is not None and self.crown >= eps:
            return self.report()
        points = negative_points(self.margin(slice(None)), self.flat, count, self.threat)
        for row in range(count):
            self.replay(row, points[row : row + 1])
        if eps is not None:
            if eps < self.upper:
                self.solve_all(self.taken_back(eps))
            if min(self.proven) >= eps:
                self.proven = [eps] * count
            return self.report()
        unit = float(ball.size(self.flat))
        farthest_ball = min(widest, FARTHEST * unit)
        reach = self.upper
        if math.isinf(reach):
            reach = min(2 * self.crown if self.crown > 0 else 1e-3 * min(widest, unit), farthest_ball)
        while True:
            self.solve_all(reach)
            if self.stop or self.upper < math.inf:
                break
            if min(self.proven) < self.given_away(reach):
                self.stop = "the solver's point is no counterexample"
                break
            if reach >= farthest_ball:
                self.everywhere = True
                if reach >= widest:
                    self.proven = [math.inf] * count
                break
            reach = min(2 * reach, farthest_ball)
        return self.report()

    def report(self) -> tuple[Outcome, Evidence]:
        """Report how the search ended."""
        if any(low > high for low, high in zip(self.proven, self.found, strict=True)):
            self.stop, self.contradicted = "the solver's bound lies above the distance of a counterexample", True
        eps, tolerance = self.eps, self.tolerance
        closed = math.isfinite(self.upper) and self.upper - self.radius <= tolerance * self.upper
        answered = self.everywhere or closed
        if eps is not None:
            answered = self.radius >= eps or self.upper <= eps * (1 + tolerance)
        evidence = MilpEvidence(
            bracket=(self.radius, self.upper),
            crown=self.crown,
            bounds="lp" if self.tighten else "crown",
            feasibility=FEASIBILITY,
            programs=self.programs,
        )
        if answered and not self.contradicted:
            return Outcome.LIMITED if self.everywhere and self.radius < math.inf else Outcome.COMPLETED, evidence
        reason = self.stop or "every program was solved, but the bracket is wider than the tolerance"
        return Outcome.TIMED_OUT if self.stop == TIME else Outcome.FAILED, replace(evidence, reason=reason)

    def widest(self) -> float:
        """Return the radius of the ball that holds the whole domain."""
        if self.threat.domain is None:
            return math.inf
        low, high = self.threat.ends(self.flat)
        room = torch.maximum(self.flat - low, high - self.flat).clamp(min=0)
        return (room.max() if self.threat.p == math.inf else room.sum()).item() * (1 + 1e-9)

    def solve_all(self, reach: float) -> None:
        """Solve the classes that may have a point in the ball, the most promising first, with a share of the time."""
        left = sorted(range(len(self.found)), key=lambda row: (self.found[row], row))
        known: LayerBounds | None = None
        for _ in range(2):  # the second round gives the time that is left to the classes that ran out of theirs
            queue, left = left, []
            while queue:
                row, cut = queue.pop(0), reach if self.eps is not None else min(reach, self.upper)
                if self.proven[row] >= cut:
                    continue
                region = Region(self.threat, self.flat, torch.full_like(self.flat[:, 0], cut))
                known = layer_bounds(self.network, region, known=known)
                if self.tighten:
                    known = tightened(self.network, region, known)
                if self.relaxed(row, region, known):
                    continue
                share = (self.deadline - time.monotonic()) / (len(queue) + 1)
                try:
                    if share <= 0 or not self.solve(row, region, known, share):
                        left.append(row)
                except SolverError as error:
                    self.stop = str(error)
                if self.eps is not None and self.upper <= self.eps:
                    return
        if left:
            self.stop = self.stop or TIME

    def given_away(self, distance: float) -> float:
        """Lower a distance that the solver reports by the allowances."""
        return distance * (1 - WIDEN) - self.loose

    def taken_back(self, distance: float) -> float:
        """Return slightly more than the distance that `given_away` lowers to this one."""
        return (distance + self.loose) * (1 + 2 * WIDEN)

    @property
    def loose(self) -> float:
        """Largest amount that violations by `FEASIBILITY` can add to a norm."""
        return FEASIBILITY * (2.0 if self.threat.p == math.inf else 1.0 + 2.0 * self.flat.shape[1])

    def relaxed(self, row: int, region: Region, bounds: LayerBounds) -> bool:
        """Say whether CROWN's function settles the class: it is positive in the ball, or it is the margin itself."""
        linear = backward(self.network, self.rows[:, row : row + 1], self.last, bounds)
        centre, cut = linear.at(region.x) - self.slack, region.eps.item()
        reach = ball.crossing(linear.a, centre, self.threat, region.x).item()
        self.proven[row] = max(self.proven[row], min(reach, cut))
        if reach >= cut:
            return True
        if any(bool(bounds.unstable(i).any()) for i in range(self.last)):
            return False
        step = steepest_step(linear.a[0], torch.full_like(centre[0], reach), self.threat, region.x)
        self.replay(row, self.pushed(row, region.x + step, self.slack))
        self.programs[str(row)] = {"status": "linear", "lower": self.proven[row]}
        return True

    def solve(self, row: int, region: Region, bounds: LayerBounds, seconds: float) -> bool:
        """Solve one program, for the nearest point of a class in the ball or for any point; say whether it ended.

        Raises:
            SolverError: the solver does not start, or ends with an unknown status.
        """
        from highspy import HighsModelStatus

        cut, weights = region.eps.item(), self.rows[0, row]
        model = PlanetModel.of(self.network, region, bounds, self.last, integer=True)
        program, inputs = model.program, model.inputs
        allowance = self.slack + self.violation(weights, bounds)
        terms, constant = model.affine(self.last, scipy.sparse.csr_matrix(weights.cpu().numpy()[None]))
        program.rows(terms, np.array([-np.inf]), allowance - constant)
        if self.eps is None:
            distance = program.columns(np.array([self.proven[row]]), np.array([cut]))
            if self.threat.p == 1.0:
                ones = scipy.sparse.csr_matrix(np.ones((1, len(inputs))))
                program.rows([(inputs, ones), (distance, -_column(1))], np.array([-np.inf]), np.zeros(1))
            else:
                eye, d = scipy.sparse.identity(len(inputs), format="csr"), len(inputs)
                program.rows([(inputs, eye), (distance, -_column(d))], np.full(d, -np.inf), np.zeros(d))
                program.rows([(inputs, eye), (distance, _column(d))], np.zeros(d), np.full(d, np.inf))
            cost = np.zeros(program.width)
            cost[distance] = 1.0
        else:
            cost = model.cost(weights)
        solver = program.solver(
            time_limit=seconds,
            mip_rel_gap=self.tolerance / 4,
            mip_abs_gap=0.0,
            mip_feasibility_tolerance=FEASIBILITY,
            primal_feasibility_tolerance=FEASIBILITY,
            dual_feasibility_tolerance=FEASIBILITY,
            # To verify, any point will do.
            objective_target=-math.inf if self.eps is None else allowance - constant.item(),
        )
        solver.changeColsCost(program.width, np.arange(program.width, dtype=np.int32), cost)
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        dual = float(info.mip_dual_bound)
        lower = 0.0
        if status == HighsModelStatus.kInfeasible:
            lower = self.given_away(cut)
        elif self.eps is None and math.isfinite(dual):
            lower = self.given_away(min(dual, cut))
        self.proven[row] = max(self.proven[row], lower)
        solution = solver.getSolution()
        if solution.value_valid:
            values = np.array(solution.col_value)
            step = torch.from_numpy(model.spread @ values[inputs]).to(region.x)[None]
            self.replay(row, self.pushed(row, region.x + step, 2 * allowance))
        self.programs[str(row)] = {
            "status": solver.modelStatusToString(status),
            "nodes": int(info.mip_node_count),
            "binaries": int(sum(len(part) for part in model.binary)),
            "ball": cut,
            "lower": lower,
            "allowance": allowance,
        }
        ends = (HighsModelStatus.kOptimal, HighsModelStatus.kInfeasible, HighsModelStatus.kObjectiveTarget)
        if status not in (*ends, HighsModelStatus.kTimeLimit):
            raise SolverError(f"HiGHS ended with status {solver.modelStatusToString(status)!r}")
        return status in ends

    def violation(self, weights: Float[Tensor, " classes"], bounds: LayerBounds) -> float:
        """Return how far a margin can move if every row, bound and binary is violated by `FEASIBILITY`."""
        sources = [torch.full_like(self.flat, FEASIBILITY)]
        for i, maps in enumerate(self.network.absolute):
            moved = torch.zeros_like(self.network.layers[i].bias)[None]
            for source, part in maps.items():
                moved = moved + part.forward(sources[source])
            if i == self.last:
                return (moved @ weights.abs()).item() + FEASIBILITY
            low, high = bounds.lower[i], bounds.upper[i]
            moved = moved + FEASIBILITY * (2 + torch.maximum(-low, high) * bounds.unstable(i))
            sources.append(torch.where(high > 0, moved, 0.0))
        raise AssertionError("a network has a last layer")

    def pushed(self, row: int, point: Float[Tensor, "1 d"], short: float) -> Float[Tensor, "1 d"]:
        """Move a point at the boundary just beyond it, by as little as possible; return the same point if that fails.

        It tries steps of many sizes down the gradient, several of each: at a kink of the boundary one may mislead.
        """
        _, slope = slopes(self.margin(row), point)
        rate = torch.linalg.vector_norm(slope, ord=self.threat.q).clamp(min=1e-12)
        sizes = short / rate * 2.0 ** torch.arange(24, dtype=torch.float64).to(point)
        points, best, nearest = point.expand(2 * len(sizes), -1), point, math.inf
        for step in range(12):
            _, slope = slopes(self.margin(row), points)
            straight = -slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp(min=1e-300)
            # Half of them by the steepest descent of the norm, half by that of the 2-norm.
            jump = steepest_step(slope, torch.ones_like(points[:, 0]), self.threat, points)
            way = torch.cat([jump[: len(sizes)], straight[len(sizes) :]])
            points = points + way * sizes.repeat(2)[:, None] / (1 + step / 4)
            points = self.threat.clamp(points)
            beyond = self.network.preactivations(points)[-1] @ self.rows[0, row] < 0
            length = torch.linalg.vector_norm(points - self.flat, ord=self.threat.p, dim=1)
            shortest, at = torch.where(beyond, length, torch.inf).min(dim=0)
            if shortest < nearest:
                best, nearest = points[at][None], shortest.item()
        return best

    @torch.no_grad()
    def replay(self, row: int, point: Float[Tensor, "1 d"]) -> None:
        """Accept a point only if the classifier itself misclassifies it in float64; then walk back to the input."""

        def wrong(points: Tensor) -> Tensor:
            negative: Tensor = self.state.classifier(points.view_as(self.x)) @ self.rows[0, row] < 0
            return negative

        point = self.threat.clamp(point)
        if bool(wrong(point)):
            nearest = walk_back(wrong, self.flat, point, rounds=BACK, domain=self.threat.ends(self.flat))
            self.found[row] = min(self.found[row], distance(self.threat, self.flat, nearest).item())

    def margin(self, row: int | slice) -> Objective:
        """Return rows times the logits, as a function of points: one row for each, or one for all."""
        return lambda points: (self.network.preactivations(points)[-1] * self.rows[0, row]).sum(dim=1)


TIME = "the time limit was spent first"


def _column(height: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(np.ones((height, 1)))
