"""A recipe: everything that one trial needs to know, as one small frozen value.

The search holds a recipe fixed and lays a *configuration* over it: ``{"method": "cst", "cst.reduction": 8, ...}``;
the result is again a recipe, complete by itself. That is what a trial runs, what ``export`` writes and what ``train``
reads. Standard library only: a trial must run where there is just torch, torchvision and pycocotools.
(`config.loading` reads recipes from YAML with pydantic, which checks the types; the ranges are checked here.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from cst_search import plugins
from cst_search.config.augmentation import PRESETS, Augmentation
from cst_search.errors import ConfigError, did_you_mean

DETECTIONS_PER_IMAGE = 100  # COCO's limit, and torchvision's
# detector: the stages that its pyramid reads
USED_STAGES = {
    "fasterrcnn": (2, 3, 4, 5),
    "retinanet": (3, 4, 5),
    "fcos": (3, 4, 5),
    "fasterrcnn_v2": (2, 3, 4, 5),
    "retinanet_v2": (3, 4, 5),
}
DETECTORS = tuple(USED_STAGES)
# detectors with BatchNorm2d in body, pyramid or heads; the others have FrozenBatchNorm2d in a pre-trained body
BATCH_NORM_DETECTORS = ("fasterrcnn_v2", "retinanet_v2")
GROUP_NORM_DETECTORS = ("fcos", "retinanet_v2")  # in the towers of their heads
FIXED_TOWER_DETECTORS = ("fasterrcnn", "fasterrcnn_v2", "retinanet", "retinanet_v2")  # `head_convs` changes nothing
# detectors with weights trained on COCO, all on a full ResNet-50: torchvision's builder, which has them as COCO_V1
COCO_DETECTORS = {
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
    "fasterrcnn_v2": "fasterrcnn_resnet50_fpn_v2",
    "retinanet": "retinanet_resnet50_fpn",
    "retinanet_v2": "retinanet_resnet50_fpn_v2",
    "fcos": "fcos_resnet50_fpn",
}
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")  # where a trial runs; no field
RECOMPUTE_CHOICES = ("auto", "none", "neck", "all")
NECK_CHOICES = ("train", "norm", "lora", "frozen")
HEAD_CHOICES = ("train", "norm", "lora", "predictor")
CLASS_INITS = ("match", "new")
EXIF_CHOICES = ("auto", "shown", "stored")
TRUNCATED_CHOICES = ("refuse", "use")
MAX_PIXELS = 89_478_485  # PIL.Image.MAX_IMAGE_PIXELS, where Pillow warns: a quarter GiB as 24-bit RGB
BOX_FORMS = ("auto", "xywh", "xyxy", "cxcywh", "normalised", "normalised-xyxy", "normalised-cxcywh")
SIZES_CHOICES = ("file", "image")
CROWD_CHOICES = ("auto", "ignore", "as-objects")
ROTATED_CHOICES = ("refuse", "enclose", "ignore")
AUGMENTATIONS = tuple(PRESETS)
WEIGHT_NAMES = ("DEFAULT", "COCO", "IMAGENET", "none", "demo", "demo-detector")  # all others are paths
WEIGHTS_RULE = ", ".join(WEIGHT_NAMES) + ", a file, or a folder of `cst-search train`"
#: Field names that earlier versions wrote, each with the field's name today. `renamed_fields` reads them.
FORMER_NAMES = {"checkpoint": "recompute"}
#: Fields on how data are read, with the values that stand for what the versions before these fields did.
_FORMER_READING = {"exif": "stored", "boxes": "xywh", "crowd": "ignore", "rotated": "ignore"}


def wrong_kinds(owner: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Return the faults of values whose type does not match their dataclass field, e.g. text for a number.

    Ranges can only be checked once there are none.
    """

    def number(value: Any, *kinds: type) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool)

    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "str": ("a text", lambda value: isinstance(value, str)),
        "bool": ("true or false", lambda value: isinstance(value, bool)),
        "int": ("a whole number", lambda value: number(value, int)),
        "float": ("a number", lambda value: number(value, int, float)),
        "int | None": ("a whole number", lambda value: value is None or number(value, int)),
        "float | None": ("a number", lambda value: value is None or number(value, int, float)),
        "tuple[int, ...]": (
            "a list of whole numbers",
            lambda value: isinstance(value, tuple) and all(number(item, int) for item in value),
        ),
    }
    kinds = {f.name: rules[str(f.type)] for f in fields(owner) if f.type in rules}
    return [
        f"{name} must be {kinds[name][0]}; got {value!r}"
        for name, value in values.items()
        if name in kinds and not kinds[name][1](value)
    ]


def renamed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that an earlier version may have written, under today's field names.

    Everything that holds recipe fields and comes from outside passes here: recipe files, ``--set``, search spaces,
    stored studies, saved weights and checkpoints. Order is kept; a name that is no former one stays as it is.

    Raises:
        ConfigError: a field is given under both of its names.
    """
    both = [(old, new) for old, new in FORMER_NAMES.items() if old in values and new in values]
    if both:
        raise ConfigError("; ".join(f"{old} is the former name of {new}; give {new} alone" for old, new in both))
    return {FORMER_NAMES.get(name, name): value for name, value in values.items()}


def stored_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a stored recipe, of this or an earlier version, with today's names and meaning.

    A recipe without ``neck`` is from before whole detectors could be loaded: its ``DEFAULT`` weights are IMAGENET. One
    without ``exif``, ``boxes``, ``crowd`` or ``rotated`` reads data as the versions before these fields did. Other
    fields that it does not have get their defaults, which change nothing. Values are not checked.

    Raises:
        ConfigError: a field is given under both of its names.
    """
    values = renamed_fields(values)
    if "neck" not in values and values.get("weights") == "DEFAULT":
        values["weights"] = "IMAGENET"
    return Recipe().to_dict() | _FORMER_READING | values


def written_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that a user wrote, with today's names; a recipe that a study exported counts as stored.

    Raises:
        ConfigError: a field is given under both of its names.
    """
    return stored_fields(values) if values.get("origin") else renamed_fields(values)


def _reading(default: Any) -> Any:
    """Declare a field that says how the data set is read: one of `READING_FIELDS`, which no search varies."""
    return field(default=default, metadata={"reading": True})


_ONE_OF = "one of "  # begins the rule of a field that takes names


def _nearest(value: Any, rule: str) -> str:
    """Return a hint at the name that was probably meant, for a rule that lists names."""
    return did_you_mean(str(value), rule.removeprefix(_ONE_OF).split(", ")) if rule.startswith(_ONE_OF) else ""


@dataclass(frozen=True)
class Recipe:
    """Detector, data, method and schedule of a trial.

    ``epochs`` is the full length that ``train`` uses; ``search_epochs`` is what a trial of a search gets.
    """

    # a typo in a recipe is an error and a quoted number is not a number (read by pydantic in config.py)
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    # torchvision's fasterrcnn | retinanet | fcos | fasterrcnn_v2 | retinanet_v2, or one of another package
    detector: str = "fasterrcnn"
    backbone: str = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101
    width: float = 1.0  # channels of the backbone relative to torchvision's
    # COCO (torchvision's trained detector), IMAGENET (its ResNet; neck and heads random), DEFAULT (COCO where there is
    # one, else IMAGENET), none (random), demo-detector (shipped), demo (its earlier ResNet alone), or a file of either
    weights: str = "DEFAULT"
    class_init: str = "match"  # class layers: match (copy the rows of classes that the detector knows by name) | new
    fpn_channels: int = 256  # channels of every pyramid level
    anchor_scale: float = 1.0  # multiplies torchvision's anchor sizes; below 1 for small objects or small images
    head_convs: int = 4  # convolutions in each FCOS tower; the others have theirs fixed

    data: str = "demo"  # a folder in COCO's, YOLO's or Pascal VOC's format, or demo
    # boxes lie on the picture as shown (EXIF orientation applied) | as stored | auto: as the sizes in the file say
    exif: str = _reading("auto")
    max_pixels: int = _reading(MAX_PIXELS)  # bound of width times height: a small file may claim more than memory holds
    truncated: str = _reading("refuse")  # image files that are cut off at their end: refuse | use (what is there)
    # value of white in grey scale of more than 8 bits; none: 65535, or 1 or 255 for floats
    white_level: float | None = _reading(None)
    val_fraction: float | None = _reading(None)  # share of train that validates a set without validation split
    val_seed: int = _reading(0)  # of the choice of these images; not `seed`, so that repeated trials share the data
    sizes: str = _reading("file")  # width and height of images are those of the annotation file: file | image (unread)
    # form of a bbox: xywh | xyxy | cxcywh (centre, width, height), in pixels; normalised, normalised-xyxy,
    # normalised-cxcywh: the same in 0..1 | auto: xywh, but stop where the boxes together speak for another form
    boxes: str = _reading("auto")
    # objects with iscrowd 1: ignore (no object to learn from or to find) | as-objects | auto: ignore, but stop where
    # they are most of a split
    crowd: str = _reading("auto")
    # boxes with a rotation: refuse | enclose (the upright box around) | ignore (the box as if it were not turned)
    rotated: str = _reading("refuse")
    # most detections of an image; none: 100, and what the data need where a search or a training begins, see
    # `data.density`
    detections_per_image: int | None = None
    image_size_px: int = 800  # short side in pixels
    max_size_px: int = 1333  # bound of the long side in pixels
    hflip: bool = True  # flip training images left-right with probability one half
    augment: str = "none"  # none | light | strong: scale and photometric jitter of training images
    scale_jitter: float | None = None  # objects are shown 1/f to f times as large; none: 1, 1.25 or 2, by augment
    photometric: float | None = None  # strength of brightness, contrast, saturation, hue; none: 0, 0.4 or 1, by augment

    method: str = "cst"  # a name in cst_search.petl.METHODS
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method; what is not given has its default

    # trained part of a trained detector's pyramid and heads; norm: scale and shift of norms, and biases; lora: low-rank
    # updates of convolutions and linear layers; predictor: the last class and box layers, which norm and lora train too
    neck: str = "train"  # train | norm | lora | frozen
    head: str = "train"  # train | norm | lora | predictor
    lora_rank: int = 8  # rank of the updates for `neck: lora` and `head: lora`

    epochs: int = 12  # passes over the training split, final training
    search_epochs: int = 4  # passes over the training split, in a search
    batch_size: int = 4  # images per step
    accumulate: int = 1  # steps per optimiser update
    lr: float | None = None  # peak learning rate of AdamW; none: the method's prior
    weight_decay: float = 1e-4  # of AdamW; gates, norms and biases always have 0
    warmup: float = 0.1  # share of all updates with a linearly rising learning rate
    clip_norm: float = 5.0  # bound of the gradient's 2-norm
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU)
    memsave: bool = True  # frozen layers keep only what their backward pass reads; same gradients
    # computed again instead of kept: none; neck (side network, pyramid, heads); all (residual blocks too);
    # auto: no more than the memory budget needs, none without a budget, see `trial.cost.with_recompute`
    recompute: str = "auto"
    eval_every: int = 1  # epochs between evaluations; the last epoch is always evaluated
    loader_workers: int = 0  # processes that load images; 0: in the trial's own
    seed: int = 0  # of what is random in a trial: initial weights, order, flips and jitter of images

    origin: Mapping[str, Any] | None = None  # where an exported recipe comes from: study, trial, what was measured

    def __post_init__(self) -> None:
        faults = wrong_kinds(type(self), vars(self)) or [
            f"{name} must be {rule}; got {(value := getattr(self, name))!r}{_nearest(value, rule)}"
            for name, ok, rule in self._rules()
            if not ok
        ]
        if faults:
            raise ConfigError("recipe: " + "; ".join(faults))

    @property
    def weights_kind(self) -> str:
        """Weights that DEFAULT stands for, COCO or IMAGENET; any other value of ``weights`` unchanged."""
        if self.weights != "DEFAULT":
            return self.weights
        return "COCO" if self.coco_detector else "IMAGENET"

    @property
    def coco_detector(self) -> bool:
        """True if torchvision has this architecture trained on COCO."""
        shape = (self.backbone, self.width, self.fpn_channels, self.head_convs)
        return self.detector in COCO_DETECTORS and shape == ("resnet50", 1.0, 256, 4)

    @property
    def has_trained_detector(self) -> bool:
        """True if neck and heads start trained, or may do so: `detector.build` reads that from the file."""
        return self.weights_kind not in ("IMAGENET", "none", "demo")

    @property
    def frozen_norm(self) -> bool:
        """True if the body has FrozenBatchNorm2d, whose weight and bias are buffers; False for BatchNorm2d."""
        return self.weights_kind != "none" and self.detector not in BATCH_NORM_DETECTORS

    @property
    def augmentation(self) -> Augmentation:
        """Jitter of training images: the preset ``augment``, overridden by the fields given beside it."""
        preset = PRESETS[self.augment]
        return Augmentation(
            preset.scale_jitter if self.scale_jitter is None else self.scale_jitter,
            preset.photometric if self.photometric is None else self.photometric,
        )

    def recomputed_part(self, has_side: bool) -> str:
        """Return what is recomputed, with or without a side network, where no budget decides: none, neck or all.

        What `cst-search export` writes has no ``auto``. Earlier versions wrote it and meant ``neck`` with a side
        network.
        """
        if self.recompute != "auto":
            return self.recompute
        return "neck" if has_side and self.origin is not None else "none"

    @property
    def max_detections(self) -> int:
        """Maximum number of detections per image, for the detector and for evaluation."""
        return self.detections_per_image or DETECTIONS_PER_IMAGE

    @property
    def used_stages(self) -> tuple[int, ...]:
        """Stages of the body that the feature pyramid reads."""
        if self.detector in USED_STAGES:
            return USED_STAGES[self.detector]
        plugin = plugins.of_name("detectors", self.detector, ours=False)
        assert plugin is not None  # see _rules
        stages: tuple[int, ...] = plugins.load(plugin, object).used_stages  # `registry.get_detector` has checked it
        return stages

    def _above(self, name: str, low: float) -> tuple[str, bool, str]:
        value = getattr(self, name)
        return name, math.isfinite(value) and value > low, f"above {low:g}"

    def _whole(self, name: str, low: int, high: int) -> tuple[str, bool, str]:
        return name, low <= getattr(self, name) <= high, f"a whole number from {low} to {high}"

    def _one_of(self, name: str, names: tuple[str, ...]) -> tuple[str, bool, str]:
        return name, getattr(self, name) in names, _ONE_OF + ", ".join(names)

    def _rules(self) -> list[tuple[str, bool, str]]:
        above, whole, one_of = self._above, self._whole, self._one_of
        return [
            one_of("detector", (*DETECTORS, *plugins.names("detectors"))),
            one_of("backbone", BACKBONES),
            one_of("precision", PRECISIONS),
            one_of("recompute", RECOMPUTE_CHOICES),
            ("width", 0.05 <= self.width <= 4, "from 0.05 to 4"),
            ("weights", bool(self.weights), WEIGHTS_RULE),
            (
                "weights",
                self.weights != "COCO" or self.coco_detector,
                "something else for this architecture: torchvision's COCO detectors are "
                f"{', '.join(COCO_DETECTORS)} with resnet50, width 1, fpn_channels 256, head_convs 4",
            ),
            one_of("class_init", CLASS_INITS),
            (
                "detections_per_image",
                self.detections_per_image is None or DETECTIONS_PER_IMAGE <= self.detections_per_image <= 10_000,
                f"a whole number from {DETECTIONS_PER_IMAGE} to 10000",
            ),
            *self._reading_rules(),
            one_of("neck", NECK_CHOICES),
            one_of("head", HEAD_CHOICES),
            *self._neck_and_head_rules(),
            whole("lora_rank", 1, 256),
            one_of("augment", AUGMENTATIONS),
            ("scale_jitter", self.scale_jitter is None or 1 <= self.scale_jitter <= 4, "a factor from 1 to 4"),
            ("photometric", self.photometric is None or 0 <= self.photometric <= 1, "a strength from 0 to 1"),
            whole("fpn_channels", 8, 2048),
            ("fpn_channels", self.fpn_channels % 8 == 0, "a multiple of 8"),
            # torchvision normalises their towers in 32 groups; one channel a group fails on a level of 1 x 1 pixel
            (
                "fpn_channels",
                self.detector not in GROUP_NORM_DETECTORS or (self.fpn_channels % 32 == 0 and self.fpn_channels >= 64),
                f"a multiple of 32 from 64 on for {' and '.join(GROUP_NORM_DETECTORS)}",
            ),
            whole("head_convs", 1, 8),
            ("anchor_scale", 0.05 <= self.anchor_scale <= 20, "from 0.05 to 20"),
            whole("image_size_px", 32, 4096),
            ("max_size_px", self.image_size_px <= self.max_size_px <= 8192, "from image_size_px to 8192"),
            whole("epochs", 1, 10_000),
            whole("search_epochs", 1, 10_000),
            whole("batch_size", 1, 1024),
            whole("accumulate", 1, 1024),
            whole("eval_every", 1, 10_000),
            whole("loader_workers", 0, 256),
            whole("seed", 0, 2**31 - 1),
            ("lr", self.lr is None or (math.isfinite(self.lr) and 0 < self.lr < 10), "above 0 and below 10"),
            ("weight_decay", 0 <= self.weight_decay <= 10, "from 0 to 10"),
            ("warmup", 0 <= self.warmup <= 0.9, "a share from 0 to 0.9"),
            above("clip_norm", 0),
        ]

    def _reading_rules(self) -> list[tuple[str, bool, str]]:
        whole, one_of = self._whole, self._one_of
        return [
            one_of("exif", EXIF_CHOICES),
            whole("max_pixels", 1, 2**40),
            one_of("truncated", TRUNCATED_CHOICES),
            ("val_fraction", self.val_fraction is None or 0.01 <= self.val_fraction <= 0.5, "a share from 0.01 to 0.5"),
            whole("val_seed", 0, 2**31 - 1),
            (
                "white_level",
                self.white_level is None or (math.isfinite(self.white_level) and self.white_level > 0),
                "above 0",
            ),
            one_of("sizes", SIZES_CHOICES),
            one_of("boxes", BOX_FORMS),
            one_of("crowd", CROWD_CHOICES),
            one_of("rotated", ROTATED_CHOICES),
        ]

    def _neck_and_head_rules(self) -> list[tuple[str, bool, str]]:
        rule = (
            f"train, because weights {self.weights_kind} leave neck and heads random; "
            "start from a trained detector (weights: COCO, demo-detector or a file)"
        )
        return [(part, getattr(self, part) == "train" or self.has_trained_detector, rule) for part in ("neck", "head")]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, by_hand: bool = False) -> Recipe:
        """Return the recipe that `to_dict` wrote, in this or an earlier version; ``by_hand``: one that a user wrote.

        Raises:
            ConfigError: a value is out of its range, or a field is given under both of its names.
            TypeError: a key is no field.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"a recipe is a mapping of its fields; got {type(content).__name__}")
        return cls(**(written_fields(content) if by_hand else stored_fields(content)))

    def configured(self, config: Mapping[str, Any]) -> Recipe:
        """Return this recipe with the values of a configuration in place of its own.

        Args:
            config: flat; keys are names of recipe fields, ``method``, or ``<method>.<option>``. Options of a method
                that is not the chosen one are ignored, so that a conditional space may carry them. An image size above
                ``max_size_px`` raises that bound too, in the recipe's proportion.

        Raises:
            ConfigError: a key without a dot is no field.
        """
        config = renamed_fields(config)
        known = {f.name for f in fields(self)} - {"options", "origin"}
        unknown = [key for key in config if "." not in key and key not in known]
        if unknown:
            raise ConfigError(
                f"no such dimension: {', '.join(unknown)}; a recipe has {', '.join(sorted(known))}"
                f"{did_you_mean(unknown[0], known)}"
            )
        method = config.get("method", self.method)
        options = dict(self.options) if method == self.method else {}
        options |= {
            key.partition(".")[2]: value
            for key, value in config.items()
            if key.partition(".")[0] == method and "." in key
        }
        values = {key: value for key, value in config.items() if "." not in key}
        size = values.get("image_size_px", self.image_size_px)
        if "max_size_px" not in values and size > self.max_size_px:
            values["max_size_px"] = size * self.max_size_px // self.image_size_px
        return replace(self, **(values | {"method": method, "options": options}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, ready for YAML or JSON."""
        plain = asdict(self)
        plain["options"] = dict(self.options)
        if plain["origin"] is None:
            del plain["origin"]
        return plain


#: Fields that say how the data set is read, see `data.options.ReadOptions`. Trials of a search share the data.
READING_FIELDS = tuple(f.name for f in fields(Recipe) if "reading" in f.metadata)
