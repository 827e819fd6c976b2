"""Merge methods as data: what each one is called, what it needs, which coefficients it takes.

A method declares its parameters, ranges and defaults here once; the space, the study file, the
docs table and the error messages read them from here. The arithmetic is in
``mergefront.adapters.merging``: methods of the task-vector family are a combination of a
``sparsifier`` and a ``consensus``, the others name a ``kernel``.

Names and defaults follow mergekit (https://github.com/arcee-ai/mergekit) unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from mergefront.optimizer.errors import UserError, did_you_mean

ParameterValue = float | int | bool | str


@dataclass(frozen=True)
class MethodParameter:
    """One coefficient of a merge method.

    ``scope`` is "model" when every expert has its own (``weight[maths]``) and "recipe" when the
    whole merge has one (``lambda``). ``low`` and ``high`` bound what is accepted; ``search`` is the
    range that a space takes when it only names the parameter. ``default`` None means that the
    user has to give a value or a range.
    """

    name: str
    scope: Literal["model", "recipe"]
    default: ParameterValue | None
    doc: str
    low: float = float("-inf")
    high: float = float("inf")
    search: tuple[float, float] = (0.0, 1.0)
    choices: tuple[ParameterValue, ...] = ()

    def check(self, value: object) -> str | None:
        """What is wrong with ``value``, or None when the method accepts it."""
        if self.choices:
            if value not in self.choices or isinstance(value, bool) != isinstance(self.choices[0], bool):
                return f"{self.name} is {value!r}; it must be one of {', '.join(map(str, self.choices))}"
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{self.name} is {value!r}; it must be a number"
        if not self.low <= value <= self.high:
            return f"{self.name} is {value!r}; it must lie in [{self.low:g}, {self.high:g}]"
        return None


@dataclass(frozen=True)
class MergeMethod:
    """One row of the registry.

    A method of the task-vector family has a ``consensus`` ("none" or "sign") and a ``sparsifier``, a
    method of LoRA factors has ``lora``, the operator that combines them (``lora_pool``);
    any other has a ``kernel``: a callable, or its dotted name ``module:function``, which is
    imported when the method is first used. It is called for every tensor as
    ``kernel(tensors, base, **parameters)`` with float32 tensors in the recipe's order (``base`` is None
    without one) and returns the merged tensor; a parameter of scope "model" is a tuple aligned to
    ``tensors``. ``elementwise`` says that any stretch of entries may be merged alone. ``prepare`` does
    what does not depend on the coefficients, once per tensor and pool: ``prepare(tensors, base)``,
    whose result the kernel gets as ``prepared``.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[MethodParameter, ...]
    needs_base: bool = True
    optional_base: bool = False
    min_models: int = 1
    max_models: int | None = None
    sparsifier: Literal["none", "magnitude", "bernoulli", "rank", "breadcrumbs"] = "none"
    consensus: Literal["none", "sign"] | None = None
    kernel: str | Callable[..., Any] | None = None
    prepare: str | Callable[..., Any] | None = None
    elementwise: bool = False
    stochastic: bool = False
    lora: Literal["cat", "svd", "factor"] | None = None

    def parameter(self, name: str) -> MethodParameter | None:
        """The parameter called ``name``, or None when this method has no such parameter."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def refuses(self, models: int) -> str | None:
        """What is wrong with this number of models, or None."""
        if models >= self.min_models and (self.max_models is None or models <= self.max_models):
            return None
        wanted = f"at least {self.min_models}"
        if self.max_models is not None:
            least = "" if self.min_models == self.max_models else f"{self.min_models} to "
            wanted = f"{least}{self.max_models}"
        return f"{self.name} takes {wanted} {'model' if self.max_models == 1 else 'models'}, not {models}"

    def load_kernel(self) -> Callable[..., Any]:
        """The kernel as a callable; raises ``UserError`` when its module does not have it."""
        return self._load(self.kernel)

    def load_prepare(self) -> Callable[..., Any] | None:
        """The preparation as a callable, or None when the method has none."""
        return None if self.prepare is None else self._load(self.prepare)

    def _load(self, function: str | Callable[..., Any] | None) -> Callable[..., Any]:
        if function is None:
            raise UserError(f"{self.name} has no kernel; it is merged by its sparsifier and consensus, or as LoRAs")
        if not isinstance(function, str):
            return function
        module, _, name = function.partition(":")
        try:
            loaded: Callable[..., Any] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"merge method {self.name!r}: {function!r} cannot be imported: {error}") from None
        return loaded


WEIGHT = MethodParameter("weight", "model", None, "multiplies the expert's task vector (or the expert itself)")
DENSITY = MethodParameter(
    "density", "model", 1.0, "fraction of the task vector's entries that is kept", low=0.0, high=1.0, search=(0.1, 1.0)
)
LAMBDA = MethodParameter("lambda", "recipe", 1.0, "multiplies the merged task vector", search=(0.5, 1.5))


def normalize(default: bool) -> MethodParameter:
    """The switch that divides by the sum of the weights that took part."""
    return MethodParameter(
        "normalize", "recipe", default, "divide by the sum of the weights that took part", choices=(True, False)
    )


def rescale(default: str) -> MethodParameter:
    """What to do about the entries that were dropped."""
    return MethodParameter(
        "rescale",
        "recipe",
        default,
        "after dropping entries: restore the L1 norm (mergekit), divide by the density (the paper), or leave as is",
        choices=("l1", "density", "none"),
    )


def switch(name: str, default: bool, doc: str) -> MethodParameter:
    """A parameter that is true or false."""
    return MethodParameter(name, "recipe", default, doc, choices=(True, False))


INTERPOLATION = MethodParameter("t", "recipe", None, "0 is the first model, 1 the second", low=0.0, high=1.0)
GAMMA = MethodParameter(
    "gamma", "model", 0.01, "fraction of the largest entries that is dropped", low=0.0, high=1.0, search=(0.0, 0.1)
)
EPSILON = MethodParameter(
    "epsilon",
    "model",
    0.15,
    "how far the keep probability moves from the density between the smallest and the largest entry of a row "
    "(less where density +- epsilon would leave (0, 1))",
    low=0.0,
    high=0.5,
    search=(0.0, 0.3),
)
OPTIONAL_WEIGHT = MethodParameter("weight", "model", 1.0, "multiplies the expert's singular values")
LORA_WEIGHT = MethodParameter("weight", "model", None, "multiplies the LoRA (in lora_factor: each of its two factors)")
LORA_DENSITY = MethodParameter(
    "density", "model", 1.0, "fraction of A's entries that is kept, the largest", low=0.0, high=1.0, search=(0.1, 1.0)
)
LORA_ACTIVE = MethodParameter(
    "active", "model", True, "false leaves the LoRA out (by module kind with split, by depth with blocks)",
    choices=(True, False),
)  # fmt: skip
_KERNELS = "mergefront.adapters.merging.whole_models"

_METHODS = (
    MergeMethod(
        "linear",
        "weighted average of the experts",
        "Model Soups, arXiv 2203.05482",
        (WEIGHT, normalize(True)),
        needs_base=False,
        kernel=f"{_KERNELS}.linear:merge",
        elementwise=True,
    ),
    MergeMethod(
        "task_arithmetic",
        "base plus the weighted sum of task vectors",
        "arXiv 2212.04089",
        (WEIGHT, LAMBDA, normalize(False)),
        consensus="none",
    ),
    MergeMethod(
        "ties",
        "keep the largest entries, elect a sign, average those that agree",
        "TIES, arXiv 2306.01708",
        (WEIGHT, DENSITY, LAMBDA, normalize(True), rescale("none")),
        sparsifier="magnitude",
        consensus="sign",
    ),
    MergeMethod(
        "dare_linear",
        "drop entries at random, rescale, add",
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, LAMBDA, normalize(False), rescale("l1")),
        sparsifier="bernoulli",
        consensus="none",
        stochastic=True,
    ),
    MergeMethod(
        "dare_ties",
        "drop entries at random, rescale, elect a sign, add",
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, LAMBDA, normalize(False), rescale("l1")),
        sparsifier="bernoulli",
        consensus="sign",
        stochastic=True,
    ),
    MergeMethod(
        "slerp",
        "spherical interpolation between two models",
        "mergekit 0.1.5",
        (INTERPOLATION,),
        needs_base=False,
        min_models=2,
        max_models=2,
        kernel=f"{_KERNELS}.spherical:slerp",
    ),
    MergeMethod(
        "della_linear",
        "drop entries at random, small ones more often, rescale, add",
        "DELLA, arXiv 2406.11617",
        (WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(False), rescale("l1")),
        sparsifier="rank",
        consensus="none",
        stochastic=True,
    ),
    MergeMethod(
        "della",
        "drop entries at random, small ones more often, rescale, elect a sign, average those that agree",
        "DELLA, arXiv 2406.11617",
        (WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(True), rescale("l1")),
        sparsifier="rank",
        consensus="sign",
        stochastic=True,
    ),
    MergeMethod(
        "breadcrumbs",
        "drop the largest and the smallest entries, add",
        "Model Breadcrumbs, arXiv 2312.06795",
        (WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(False), rescale("none")),
        sparsifier="breadcrumbs",
        consensus="none",
    ),
    MergeMethod(
        "breadcrumbs_ties",
        "drop the largest and the smallest entries, elect a sign, add",
        "Model Breadcrumbs, arXiv 2312.06795",
        (WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(False), rescale("none")),
        sparsifier="breadcrumbs",
        consensus="sign",
    ),
    MergeMethod(
        "nuslerp",
        "spherical interpolation with weights, of models or of task vectors",
        "mergekit 0.1.5",
        (
            WEIGHT,
            switch("nuslerp_row_wise", False, "interpolate along the first dimension when not flattened"),
            switch("nuslerp_flatten", True, "one angle per tensor rather than one per row"),
        ),
        needs_base=False,
        optional_base=True,
        min_models=2,
        max_models=2,
        kernel=f"{_KERNELS}.spherical:nuslerp",
    ),
    MergeMethod(
        "multislerp",
        "spherical interpolation of any number of models in the tangent space of their mean",
        "C. Goddard 2025 (multislerp); mergekit 0.1.5",
        (
            WEIGHT,
            switch("normalize_weights", True, "divide the weights by their sum"),
            MethodParameter("eps", "recipe", 1e-8, "norms below this count as zero", low=0.0, search=(1e-8, 1e-8)),
        ),
        needs_base=False,
        optional_base=True,
        kernel=f"{_KERNELS}.spherical:multislerp",
    ),
    MergeMethod(
        "karcher",
        "mean on the sphere (Karcher, Riemannian centre of mass), equal weights",
        "arXiv 2603.04972; mergekit 0.1.5",
        (
            MethodParameter("max_iter", "recipe", 10.0, "most iterations", low=1.0, search=(1.0, 20.0)),
            MethodParameter("tol", "recipe", 1e-5, "stops when the tangent is shorter", low=0.0, search=(1e-6, 1e-4)),
        ),
        needs_base=False,
        kernel=f"{_KERNELS}.spherical:karcher",
    ),
    MergeMethod(
        "model_stock",
        "between base and average, as close to the average as the experts agree",
        "Model Stock, arXiv 2403.19522",
        (switch("filter_wise", False, "one ratio per row rather than one per tensor"),),
        min_models=2,
        kernel=f"{_KERNELS}.consensus:model_stock",
    ),
    MergeMethod(
        "sce",
        "select by variance, weigh by energy, erase the minority sign",
        "SCE (FuseChat), arXiv 2408.07990",
        (
            MethodParameter(
                "select_topk",
                "recipe",
                1.0,
                "fraction of entries with the largest variance that is kept",
                low=0.0,
                high=1.0,
                search=(0.1, 1.0),
            ),
        ),
        kernel=f"{_KERNELS}.consensus:sce",
    ),
    MergeMethod(
        "ram",
        "add what only one expert changed, average what several changed",
        "Reinforced Agent Merging, arXiv 2601.13572",
        (MethodParameter("epsilon", "recipe", 1e-5, "changes below this count as none", low=0.0, search=(0.0, 1e-3)),),
        kernel=f"{_KERNELS}.consensus:ram",
        elementwise=True,
    ),
    MergeMethod(
        "ramplus_tl",
        "as ram, with what only one expert changed scaled up by how much of its change is shared",
        "Reinforced Agent Merging, arXiv 2601.13572",
        (
            MethodParameter("r", "recipe", 0.1, "strength of the scaling", low=0.0, search=(0.0, 0.5)),
            MethodParameter(
                "alpha", "recipe", 0.2, "largest shared-to-unique ratio that counts", low=0.0, search=(0.0, 1.0)
            ),
            MethodParameter("epsilon", "recipe", 1e-5, "changes below this count as none", low=0.0, search=(0.0, 1e-3)),
        ),
        kernel=f"{_KERNELS}.consensus:ram_plus",
    ),
    MergeMethod(
        "nearswap",
        "move the base towards one expert, by at most t per entry",
        "mergekit 0.1.5",
        (MethodParameter("t", "recipe", None, "largest step per entry", low=0.0, search=(0.0, 0.01)),),
        max_models=1,
        kernel=f"{_KERNELS}.linear:nearswap",
        elementwise=True,
    ),
    MergeMethod(
        "passthrough",
        "one model as it is, scaled if wanted",
        "mergekit 0.1.5",
        (MethodParameter("scale", "model", 1.0, "multiplies the tensor", search=(0.5, 1.5)),),
        needs_base=False,
        max_models=1,
        kernel=f"{_KERNELS}.linear:passthrough",
        elementwise=True,
    ),
    MergeMethod(
        "metrics_weighted",
        "average with weights from each checkpoint's own metric",
        "Metrics-Weighted Averaging, arXiv 2504.18580",
        (
            MethodParameter("metric", "model", None, "the checkpoint's metric, higher is better", low=0.0),
            MethodParameter("penalty", "recipe", 1.0, "exponent: above 1 favours the best", low=0.0, search=(0.0, 4.0)),
        ),
        needs_base=False,
        kernel=f"{_KERNELS}.linear:metrics_weighted",
        elementwise=True,
    ),
    MergeMethod(
        "tsv_m",
        "concatenate the leading singular vectors of all experts and decorrelate them",
        "Task Singular Vectors, arXiv 2412.00081",
        (OPTIONAL_WEIGHT, LAMBDA),
        kernel=f"{_KERNELS}.spectral:tsv_m",
        prepare=f"{_KERNELS}.spectral:leading_singular_vectors",
    ),
    MergeMethod(
        "wudi",
        "the task vector with the least interference on every expert's subspace, solved once per pool",
        "WUDI-Merging, arXiv 2503.08099",
        (LAMBDA,),
        kernel=f"{_KERNELS}.spectral:wudi",
        prepare=f"{_KERNELS}.spectral:least_interference",
    ),
    MergeMethod(
        "widen",
        "weigh magnitude and direction of every column by how far each expert moved it",
        "WIDEN, arXiv 2408.03092",
        (
            MethodParameter(
                "above_average_ratio",
                "recipe",
                1.0,
                "columns that moved more than this times the average take part in full",
                low=0.0,
                search=(0.5, 3.0),
            ),
            MethodParameter("calibration", "recipe", 1.0, "weight of those columns", low=0.0, search=(0.5, 1.0)),
            LAMBDA,
        ),
        kernel=f"{_KERNELS}.disentangled:widen",
    ),
    MergeMethod(
        "lora_cat",
        "concatenate the factors of LoRAs: exactly the weighted sum, ranks add up",
        "LoRA Soups, arXiv 2410.13025",
        (LORA_WEIGHT, LORA_DENSITY, LORA_ACTIVE),
        lora="cat",
    ),
    MergeMethod(
        "lora_svd",
        "the weighted sum of LoRAs cut back to a rank, with the least squared error",
        "Eckart and Young 1936",
        (
            LORA_WEIGHT,
            LORA_DENSITY,
            LORA_ACTIVE,
            MethodParameter(
                "rank",
                "recipe",
                0.0,
                "rank of every merged module; 0: the largest of its LoRAs",
                low=0.0,
                search=(1.0, 64.0),
            ),
        ),
        lora="svd",
    ),
    MergeMethod(
        "lora_factor",
        "sum the factors of LoRAs apart, A with A and B with B",
        "Evo-Merging, arXiv 2509.12951",
        (LORA_WEIGHT, LORA_DENSITY, LORA_ACTIVE),
        lora="factor",
    ),
)


class MethodRegistry(Mapping[str, MergeMethod]):
    """Merge methods by name; looking up an unknown one raises ``UserError`` with the nearest name."""

    def __init__(self, methods: tuple[MergeMethod, ...]) -> None:
        self._methods = {method.name: method for method in methods}

    def __getitem__(self, name: str) -> MergeMethod:
        try:
            return self._methods[name]
        except KeyError:
            raise UserError(f"unknown merge method {name!r} {did_you_mean(str(name), self._methods)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def add(self, method: MergeMethod) -> None:
        """Register a method of the user's own; its name must be free, or an earlier version's of the function."""
        known = self._methods.get(method.name)
        if known is not None and not _same_function(known.kernel, method.kernel):
            raise UserError(f"a merge method called {method.name!r} exists already; choose another name")
        self._methods[method.name] = method


def _same_function(first: object, second: object) -> bool:
    """Whether two functions are versions of one: the same name in the same file."""
    places = [
        (code.co_filename, code.co_qualname)
        for function in (first, second)
        if (code := getattr(function, "__code__", None)) is not None
    ]
    return len(places) == 2 and places[0] == places[1]


METHODS = MethodRegistry(_METHODS)


def methods_table(methods: Mapping[str, MergeMethod] = METHODS) -> str:
    """The registry as a Markdown table (docs/methods.md holds it, and a test compares)."""
    lines = [
        "| method | what it does | base | models | parameters (default) | source |",
        "| -- | -- | -- | -- | -- | -- |",
    ]
    for method in methods.values():
        base = "needed" if method.needs_base else "optional" if method.optional_base else "no"
        most = "" if method.max_models is None else str(method.max_models)
        models = str(method.min_models) if most == str(method.min_models) else f"{method.min_models}-{most}".rstrip("-")
        models += "+" if method.max_models is None else ""
        parameters = ", ".join(
            f"`{parameter.name}{'[expert]' if parameter.scope == 'model' else ''}`"
            f" ({'required' if parameter.default is None else str(parameter.default).lower()})"
            for parameter in method.parameters
        )
        lines.append(f"| `{method.name}` | {method.summary} | {base} | {models} | {parameters} | {method.source} |")
    return "\n".join(lines)
