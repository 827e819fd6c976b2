"""Merge methods as data: what each one is called, what it needs, which coefficients it takes.

A method declares its parameters, ranges and defaults here once. The space, the study file, the
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
Scope = Literal["model", "recipe"]
Sparsifier = Literal["none", "magnitude", "bernoulli", "rank", "breadcrumbs"]


@dataclass(frozen=True)
class MethodParameter:
    """One coefficient of a merge method.

    ``scope`` is "model" when every expert has its own (``weight[maths]``) and "recipe" when the
    whole merge has one (``lambda``). ``low`` and ``high`` bound what is accepted; ``search`` is the
    range that a space takes when it only names the parameter; where its ends are equal, the parameter is searched only
    by name. ``default`` None means that the user has to give a value or a range.
    """

    name: str
    scope: Scope
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
    ``tensors``. ``elementwise`` says that any stretch of entries may be merged alone; ``matrix_wise``, that a tensor
    that holds the matrices of several experts is merged matrix by matrix. A method ``of_matrices`` has a
    ``lambda`` and may have a ``weight``, and its kernel is called with the weighted task vectors of one matrix and the
    other parameters: ``kernel(deltas, **parameters)`` returns the merged task vector, which is multiplied by lambda;
    what is no matrix takes the mean of the weighted task vectors. ``of_tables``: embeddings and heads are matrices too.
    ``weighs``: the task vectors come as they are, and the kernel gets their ``weight``. ``prepare`` does what depends
    on no numbers, once per matrix, pool and switches: the kernel gets what ``prepare(deltas, shape, **switches)``
    returns as ``prepared``. Where all task vectors are of LoRAs, and no switch is on, these may be their cores.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[MethodParameter, ...]
    needs_base: bool = True
    optional_base: bool = False
    min_models: int = 1
    max_models: int | None = None
    sparsifier: Sparsifier = "none"
    consensus: Literal["none", "sign"] | None = None
    kernel: str | Callable[..., Any] | None = None
    prepare: str | Callable[..., Any] | None = None
    elementwise: bool = False
    matrix_wise: bool = False
    of_matrices: bool = False
    of_tables: bool = False
    weighs: bool = False
    lora: Literal["cat", "svd", "factor"] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether entries are dropped at random."""
        return self.sparsifier in ("bernoulli", "rank")

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


def number(
    name: str,
    default: float | None,
    doc: str,
    search: tuple[float, float] = (0.0, 1.0),
    scope: Scope = "recipe",
    low: float = 0.0,
    high: float = float("inf"),
) -> MethodParameter:
    """A parameter that is a number, by default of the whole merge and at least 0."""
    return MethodParameter(name, scope, default, doc, low, high, search)


def switch(name: str, default: bool, doc: str, scope: Scope = "recipe") -> MethodParameter:
    """A parameter that is true or false."""
    return MethodParameter(name, scope, default, doc, choices=(True, False))


def option(name: str, doc: str) -> MethodParameter:
    """A switch that is off, and searched only where a space names it."""
    return MethodParameter(name, "recipe", False, doc, search=(0.0, 0.0), choices=(True, False))


def weight(doc: str, default: float | None = None) -> MethodParameter:
    """Any number, negative ones too."""
    return MethodParameter("weight", "model", default, doc)


def normalize(default: bool) -> MethodParameter:
    """The switch that divides by the sum of the weights that took part."""
    return switch("normalize", default, "divide by the sum of the weights that took part")


WEIGHT = weight("multiplies the expert's task vector (or the expert itself)")
LAMBDA = MethodParameter("lambda", "recipe", 1.0, "multiplies the merged task vector", search=(0.5, 1.5))
DENSITY = number("density", 1.0, "fraction of the task vector's entries that is kept", (0.1, 1.0), "model", high=1.0)
GAMMA = number("gamma", 0.01, "fraction of the largest entries that is dropped", (0.0, 0.1), "model", high=1.0)
EPSILON = number(
    "epsilon",
    0.15,
    "how far the keep probability moves from the density between the smallest and the largest entry of a row "
    "(less where density +- epsilon would leave (0, 1))",
    (0.0, 0.3),
    "model",
    high=0.5,
)
INTERPOLATION = number("t", None, "0 is the first model, 1 the second", high=1.0)
CHANGED = number("epsilon", 1e-5, "changes below this count as none", (0.0, 1e-3))
SELECTED = number(
    "select_topk", 1.0, "fraction of entries with the largest variance that is kept", (0.1, 1.0), high=1.0
)
FAR_MOVED = number(
    "above_average_ratio", 1.0, "columns that moved more than this times the average take part in full", (0.5, 3.0)
)


def _of_task_vectors(
    name: str,
    summary: str,
    source: str,
    sparsifier: Sparsifier,
    consensus: Literal["none", "sign"],
    rescale: Literal["l1", "none"] = "none",
    normalized: bool = False,
) -> MergeMethod:
    """A method of the task-vector family; ``rescale`` and ``normalized`` are its defaults."""
    dropping = {"none": (), "rank": (DENSITY, EPSILON), "breadcrumbs": (DENSITY, GAMMA)}.get(sparsifier, (DENSITY,))
    doc = "after dropping entries: restore the L1 norm (mergekit), divide by the density (the paper), or leave as is"
    rescaling = MethodParameter("rescale", "recipe", rescale, doc, choices=("l1", "density", "none"))
    parameters = (WEIGHT, *dropping, LAMBDA, normalize(normalized), *([rescaling] if dropping else []))
    return MergeMethod(name, summary, source, parameters, sparsifier=sparsifier, consensus=consensus)


def _of_kernel(
    name: str, summary: str, source: str, kernel: str, parameters: tuple[MethodParameter, ...], **more: Any
) -> MergeMethod:
    """A method with a kernel in ``adapters.merging.whole_models``."""
    return MergeMethod(name, summary, source, parameters, kernel=f"{_KERNELS}.{kernel}", **more)


def _of_loras(
    name: str, summary: str, source: str, operator: Literal["cat", "svd", "factor"], *more: MethodParameter
) -> MergeMethod:
    """A method of LoRA factors."""
    parameters = (
        weight("multiplies the LoRA (in lora_factor: each of its two factors)"),
        number("density", 1.0, "fraction of A's entries that is kept, the largest", (0.1, 1.0), "model", high=1.0),
        switch("active", True, "false leaves the LoRA out (by module kind with split, by depth with blocks)", "model"),
    )
    return MergeMethod(name, summary, source, (*parameters, *more), lora=operator)


_MERGEKIT = "mergekit 0.1.5"
_DARE = "DARE, arXiv 2311.03099"
_DELLA = "DELLA, arXiv 2406.11617"
_CRUMBS = "Model Breadcrumbs, arXiv 2312.06795"
_RAM = "Reinforced Agent Merging, arXiv 2601.13572"
_ISOTROPIC = "arXiv 2502.04959"
_OF_SUM = weight("multiplies the expert's task vector", 1.0)
_KERNELS = "mergefront.adapters.merging.whole_models"

_METHODS = (
    _of_kernel(
        "linear",
        "weighted average of the experts",
        "Model Soups, arXiv 2203.05482",
        "linear:merge",
        (WEIGHT, normalize(True)),
        needs_base=False,
        elementwise=True,
    ),
    _of_task_vectors(
        "task_arithmetic", "base plus the weighted sum of task vectors", "arXiv 2212.04089", "none", "none"
    ),
    _of_task_vectors(
        "ties",
        "keep the largest entries, elect a sign, average those that agree",
        "TIES, arXiv 2306.01708",
        "magnitude",
        "sign",
        normalized=True,
    ),
    _of_task_vectors("dare_linear", "drop entries at random, rescale, add", _DARE, "bernoulli", "none", "l1"),
    _of_task_vectors(
        "dare_ties", "drop entries at random, rescale, elect a sign, add", _DARE, "bernoulli", "sign", "l1"
    ),
    _of_kernel(
        "slerp",
        "spherical interpolation between two models",
        _MERGEKIT,
        "spherical:slerp",
        (INTERPOLATION,),
        needs_base=False,
        min_models=2,
        max_models=2,
    ),
    _of_task_vectors(
        "della_linear", "drop entries at random, small ones more often, rescale, add", _DELLA, "rank", "none", "l1"
    ),
    _of_task_vectors(
        "della",
        "drop entries at random, small ones more often, rescale, elect a sign, average those that agree",
        _DELLA,
        "rank",
        "sign",
        "l1",
        normalized=True,
    ),
    _of_task_vectors("breadcrumbs", "drop the largest and the smallest entries, add", _CRUMBS, "breadcrumbs", "none"),
    _of_task_vectors(
        "breadcrumbs_ties",
        "drop the largest and the smallest entries, elect a sign, add",
        _CRUMBS,
        "breadcrumbs",
        "sign",
    ),
    _of_kernel(
        "nuslerp",
        "spherical interpolation with weights, of models or of task vectors",
        _MERGEKIT,
        "spherical:nuslerp",
        (
            WEIGHT,
            switch("nuslerp_row_wise", False, "interpolate along the first dimension when not flattened"),
            switch("nuslerp_flatten", True, "one angle per tensor rather than one per row"),
        ),
        needs_base=False,
        optional_base=True,
        min_models=2,
        max_models=2,
    ),
    _of_kernel(
        "multislerp",
        "spherical interpolation of any number of models in the tangent space of their mean",
        "C. Goddard 2025 (multislerp); mergekit 0.1.5",
        "spherical:multislerp",
        (
            WEIGHT,
            switch("normalize_weights", True, "divide the weights by their sum"),
            number("eps", 1e-8, "norms below this count as zero", (1e-8, 1e-8)),
        ),
        needs_base=False,
        optional_base=True,
    ),
    _of_kernel(
        "karcher",
        "mean on the sphere (Karcher, Riemannian centre of mass), equal weights",
        "arXiv 2603.04972; mergekit 0.1.5",
        "spherical:karcher",
        (
            number("max_iter", 10.0, "most iterations", (1.0, 20.0), low=1.0),
            number("tol", 1e-5, "stops when the tangent is shorter", (1e-6, 1e-4)),
        ),
        needs_base=False,
    ),
    _of_kernel(
        "model_stock",
        "between base and average, as close to the average as the experts agree",
        "Model Stock, arXiv 2403.19522",
        "consensus:model_stock",
        (switch("filter_wise", False, "one ratio per row rather than one per tensor"),),
        min_models=2,
    ),
    _of_kernel(
        "sce",
        "select by variance, weigh by energy, erase the minority sign",
        "SCE (FuseChat), arXiv 2408.07990",
        "consensus:sce",
        (SELECTED,),
    ),
    _of_kernel(
        "ram",
        "add what only one expert changed, average what several changed",
        _RAM,
        "consensus:ram",
        (CHANGED,),
        elementwise=True,
    ),
    _of_kernel(
        "ramplus_tl",
        "as ram, with what only one expert changed scaled up by how much of its change is shared",
        _RAM,
        "consensus:ram_plus",
        (
            number("r", 0.1, "strength of the scaling", (0.0, 0.5)),
            number("alpha", 0.2, "largest shared-to-unique ratio that counts"),
            CHANGED,
        ),
    ),
    _of_kernel(
        "nearswap",
        "move the base towards one expert, by at most t per entry",
        _MERGEKIT,
        "linear:nearswap",
        (number("t", None, "largest step per entry", (0.0, 0.01)),),
        max_models=1,
        elementwise=True,
    ),
    _of_kernel(
        "passthrough",
        "one model as it is, scaled if wanted",
        _MERGEKIT,
        "linear:passthrough",
        (MethodParameter("scale", "model", 1.0, "multiplies the tensor", search=(0.5, 1.5)),),
        needs_base=False,
        max_models=1,
        elementwise=True,
    ),
    _of_kernel(
        "metrics_weighted",
        "average with weights from each checkpoint's own metric",
        "Metrics-Weighted Averaging, arXiv 2504.18580",
        "linear:metrics_weighted",
        (
            number("metric", None, "the checkpoint's metric, higher is better", scope="model"),
            number("penalty", 1.0, "exponent: above 1 favours the best", (0.0, 4.0)),
        ),
        needs_base=False,
        elementwise=True,
    ),
    _of_kernel(
        "tsv_m",
        "concatenate the leading singular vectors of all experts and decorrelate them",
        "Task Singular Vectors, arXiv 2412.00081",
        "spectral:tsv_m",
        (
            weight("multiplies the expert's singular values", 1.0),
            LAMBDA,
            option("outlier_aware", "experts count by their shares in the outliers of all task vectors"),
            option("adaptive_rank", "keep fewer directions of a sparse task vector"),
        ),
        prepare=f"{_KERNELS}.spectral:leading_singular_vectors",
        of_matrices=True,
        of_tables=True,
        weighs=True,
    ),
    _of_kernel(
        "wudi",
        "the task vector with the least interference on every expert's subspace, solved once per pool",
        "WUDI-Merging, arXiv 2503.08099",
        "spectral:wudi",
        (LAMBDA,),
        prepare=f"{_KERNELS}.spectral:least_interference",
        of_matrices=True,
        of_tables=True,
    ),
    _of_kernel(
        "optmerge",
        "as wudi, for the leading singular directions of each expert only, by few steps from the mean",
        "OptMerge, arXiv 2505.19892",
        "optmerge:optmerge",
        (
            LAMBDA,
            number("rank", 0.0, "directions kept of each expert's matrix; 0: min(m, n) / experts", (1.0, 64.0)),
            number("steps", 300.0, "steps of descent from the mean", (100.0, 3000.0), high=1e6),
        ),
        prepare=f"{_KERNELS}.optmerge:directions",
        of_matrices=True,
    ),
    _of_kernel(
        "isotropic",
        "sum of task vectors with all singular values equal",
        f"Iso-C, {_ISOTROPIC}",
        "spectral:isotropic",
        (_OF_SUM, LAMBDA),
        of_matrices=True,
    ),
    _of_kernel(
        "isotropic_cts",
        "as isotropic, with the sum's last directions replaced by leading ones of each expert alone",
        f"Iso-CTS, {_ISOTROPIC}",
        "spectral:isotropic_cts",
        (_OF_SUM, LAMBDA, number("common", 0.8, "fraction of the directions that the sum keeps", (0.5, 1.0), high=1.0)),
        of_matrices=True,
    ),
    _of_kernel(
        "subspace_boosting",
        "sum of task vectors with its small singular values raised",
        "Subspace Boosting, arXiv 2506.16506",
        "spectral:subspace_boosting",
        (
            _OF_SUM,
            LAMBDA,
            number("beta", 0.01, "share of all singular values' sum at whose value the others are held", high=1.0),
        ),
        of_matrices=True,
    ),
    _of_kernel(
        "widen",
        "weigh magnitude and direction of every column by how far each expert moved it",
        "WIDEN, arXiv 2408.03092",
        "disentangled:widen",
        (FAR_MOVED, number("calibration", 1.0, "weight of those columns", (0.5, 1.0)), LAMBDA),
        matrix_wise=True,
    ),
    _of_loras(
        "lora_cat",
        "concatenate the factors of LoRAs: exactly the weighted sum, ranks add up",
        "LoRA Soups, arXiv 2410.13025",
        "cat",
    ),
    _of_loras(
        "lora_svd",
        "the weighted sum of LoRAs cut back to a rank, with the least squared error",
        "Eckart and Young 1936",
        "svd",
        number("rank", 0.0, "rank of every merged module; 0: the largest of its LoRAs", (1.0, 64.0)),
    ),
    _of_loras(
        "lora_factor",
        "sum the factors of LoRAs apart, A with A and B with B",
        "Evo-Merging, arXiv 2509.12951",
        "factor",
    ),
)


class MethodRegistry(Mapping[str, MergeMethod]):
    """Merge methods by name; looking up an unknown one raises ``UserError`` with the nearest name.

    Those ``inside`` one model are looked up and not listed.
    """

    def __init__(self, methods: tuple[MergeMethod, ...], inside: tuple[MergeMethod, ...] = ()) -> None:
        self._methods = {method.name: method for method in methods}
        self._inside = {method.name: method for method in inside}

    def __getitem__(self, name: str) -> MergeMethod:
        try:
            return self._inside.get(name) or self._methods[name]
        except KeyError:
            known = {**self._methods, **self._inside}
            raise UserError(f"unknown merge method {name!r} {did_you_mean(str(name), known)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def add(self, method: MergeMethod) -> None:
        """Register a method of the user's own; its name must be free, or an earlier version's of the function."""
        known = self._inside.get(method.name) or self._methods.get(method.name)
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


MERGE_EXPERTS = MergeMethod(
    "merge_experts",
    "make experts of each layer of one mixture one, so that fewer are left",
    "M-SMoE, arXiv 2310.01334; Sub-MoE, arXiv 2506.23266",
    (
        number("keep", None, "how many experts a layer keeps", (2.0, 8.0), low=1.0),
        MethodParameter(
            "groups", "recipe", "frequency", "how experts are grouped", choices=("frequency", "subspace", "most_used")
        ),
        number("rank", 1.0, "of subspace: the share of the directions that is kept", (0.25, 1.0), high=1.0),
    ),
    max_models=1,
)
"""Merges the experts inside one model (``adapters.local.mixture``): known by its name, in no list of methods that merge
models with each other."""
METHODS = MethodRegistry(_METHODS, (MERGE_EXPERTS,))


def kept_count(density: float, size: int) -> int:
    """floor(density * size) entries are kept, but at least one when density is positive (mergekit 0.1.5)."""
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 and size else 0
