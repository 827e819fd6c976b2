"""The same model and acquisition on BoTorch: ``SingleTaskGP`` and ``qLogNoisyExpectedHypervolumeImprovement``.

Slower by one to two orders of magnitude than ``acquisition`` (an automatic differentiation library and Monte Carlo
samples of f(x) instead of closed forms), and the reference that it is held against. It is what
``budget="botorch"`` searches with, for those who want BoTorch's own models in the loop. Values of trials outside
the space are not part of its front.
"""

from __future__ import annotations

import numpy as np
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective import logei
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.samplers.gaussian_process.fit import LENGTHSCALE_BOUNDS
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN


def matern(dimension: int, objectives: int) -> MaternKernel:
    """The kernel of ``gaussian_process`` with its prior, for a batch of ``objectives`` processes."""
    prior = MATERN.lengthscales.in_dimension(dimension)
    return MaternKernel(
        nu=2.5,
        ard_num_dims=dimension,
        batch_shape=torch.Size([objectives]) if objectives > 1 else torch.Size(),
        lengthscale_prior=LogNormalPrior(prior.log_median, prior.log_sd),
        lengthscale_constraint=GreaterThan(LENGTHSCALE_BOUNDS[0]),
    )


class BoTorchImprovement:
    """The acquisition function of one proposal, by BoTorch; larger is better.

    Args:
        x: observed points (``n x d``) in the unit cube.
        y: their values (``n x m``), normalised and maximised.
        noise_variance: of ``y`` (``n x m``); where any is NaN the noise is inferred.
        pending: points whose values are on their way (``p x d``).
        reference: reference point (``m``) in the unit of ``y``.
        samples: quasi Monte Carlo samples.
        seed: of the samples.
        feasible: which of the observed points (``n``) satisfy the constraints and make the front; None means all.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        noise_variance: Array,
        pending: Array,
        reference: Array,
        samples: int,
        seed: int,
        feasible: Mask | None = None,
    ) -> None:
        # At first use BoTorch compiles a C++ kernel for half a minute, into a folder that machines with other
        # processors may share. It offers no switch; this is the flag that it sets itself after one attempt.
        logei._load_attempted = True
        known = bool(np.isfinite(noise_variance).all())
        observed, values = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())
        variance = torch.from_numpy(np.maximum(noise_variance, 1e-8)) if known else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SingleTaskGP(observed, values, variance, covar_module=matern(x.shape[1], y.shape[1]))
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            sampler = SobolQMCNormalSampler(torch.Size([samples]), seed=seed)
            # Without a feasible point there is no front to improve, and only the feasibility is maximised.
            baseline = observed if feasible is None or not feasible.any() else observed[torch.from_numpy(feasible)]
            waiting = torch.from_numpy(pending.copy()) if len(pending) else None
            if y.shape[1] == 1:
                self._function = qLogNoisyExpectedImprovement(
                    model, X_baseline=baseline, sampler=sampler, X_pending=waiting, prune_baseline=True
                )
            else:
                self._function = logei.qLogNoisyExpectedHypervolumeImprovement(
                    model, reference.tolist(), baseline, sampler=sampler, X_pending=waiting, prune_baseline=True
                )

    def values(self, points: Array) -> Array:
        """The acquisition at ``points`` (``b x d``), ``b``."""
        with torch.no_grad():
            rows = [self._at(torch.from_numpy(part.copy())) for part in np.array_split(points, -(-len(points) // 64))]
        return np.asarray(torch.cat(rows).numpy())

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        """The acquisition at one point (``d``) and its gradient (``d``)."""
        at = torch.from_numpy(point.copy())[None, :].requires_grad_(True)
        value = self._at(at).sum()
        (gradient,) = torch.autograd.grad(value, at)
        return float(value.detach()), np.asarray(gradient[0].numpy())

    def _at(self, points: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._function(points[:, None, :])
        return found
