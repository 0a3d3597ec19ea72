"""The recipe: one frozen tree, one section per word, read from YAML and overridden by dotted options.

Not here: what the steps do with it. This module imports neither torch nor Ray, so `--help` and a bad recipe
answer at once. Variants are made with `changed`, which validates.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Frac = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]

SPLITS = ("train", "identify", "audit", "control", "test")
Split = Literal["train", "identify", "audit", "control", "test"]
Market = Literal["spot", "on-demand"]
Rule = Literal["fixed", "percentile", "recall", "fdr", "none"]
Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """The recipe cannot be run as written; the message says where, what was wanted and what to do."""


class Section(BaseModel):
    """A part of the recipe: immutable, no unknown keys, every field documented below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Phantom(Section):
    """The built-in cohort of drawn chest X-rays."""

    n_patients: Count = 5200
    """Patients in the whole cohort, before the splits."""
    heavy_patient_frac: Frac = 0.032
    """Share of patients with 30-100 images (an intensive-care tail)."""
    repeat_frac: Frac = 0.45
    """Chance that a follow-up film shows the same state as the one before (near-duplicates)."""


class Table(Section):
    """A folder of images and a table with one row per image."""

    file: str = "metadata.csv"
    """Table below `root`: .csv, .jsonl or .parquet."""
    image: str = "image"
    """Column with the image's path below `root`."""
    patient: str = "patient_id"
    """Column with the patient's identity."""
    text: str | None = "text"
    """Column with the report or caption; none means that prompts come from labels, age, sex and view."""
    labels: str | tuple[str, ...] | None = "labels"
    """One column of names joined by `label_separator`, or one column per finding holding 0, 1, -1 or blank; none for
    a cohort without labels, of which utility is not measured."""
    label_separator: str = "|"
    """What stands between the names in a joined label column."""
    findings: tuple[str, ...] = ()
    """Findings to keep, in order; empty keeps every one that is seen in at least k patients."""
    negative: tuple[str, ...] = ("No Finding",)
    """Names in a joined label column that mean that nothing was found."""
    uncertain: Literal["positive", "negative", "ignore"] = "positive"
    """What a -1 means (U-Ones, U-Zeros, or left out of training and of AUROC)."""
    blank: Literal["negative", "ignore"] = "negative"
    """What an empty label cell means."""
    view: str | None = None
    """Column with the projection (PA, AP, ...)."""
    sex: str | None = None
    """Column with the sex (M, F)."""
    age: str | None = None
    """Column with the age in years; `058Y` is read too."""
    date: str | None = None
    """Column with the study date or day offset; orders a patient's images."""
    keep: dict[str, tuple[str, ...]] = {}
    """Column -> values: only such rows are used, the others are rejected with the reason."""


class Splits(Section):
    """Share of patients in each split; patient-disjoint, decided once by a stable hash."""

    train: Frac = 0.05
    """Teacher and gallery."""
    identify: Frac = 0.2
    """Re-identification network and domain encoder."""
    audit: Frac = 0.2
    """The auditor's network."""
    control: Frac = 0.25
    """Unseen patients that calibrate thresholds."""
    test: Frac = 0.3
    """Unseen patients: control ratio and real test set."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = sum(self.shares().values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the splits must sum to 1, got {total:g}")
        return self

    def shares(self) -> dict[str, float]:
        """Share of patients by split name, in the fixed order of `SPLITS`."""
        return {name: getattr(self, name) for name in SPLITS}


class Prompt(Section):
    """How a record becomes a prompt: a comma-separated list of short phrases."""

    parts: tuple[Literal["age", "sex", "view", "labels", "text"], ...] = ("age", "sex", "text")
    """Which parts, in this order; age becomes a decade."""
    max_phrases: Count = 5
    """Most phrases taken from the text."""
    max_words: Count = 24
    """Longest prompt in words; the rest is cut at a phrase."""


class Ingest(Section):
    """Where records come from and who belongs to which split."""

    kind: Literal["phantom", "table"] = "phantom"
    """Kind of cohort; its own section below has the details."""
    root: Path | None = None
    """Folder of a `table` cohort."""
    phantom: Phantom = Phantom()
    """The built-in cohort."""
    table: Table = Table()
    """A folder with a table."""
    image_px: Annotated[int, Field(ge=16, le=1024)] = 48
    """Side of the square images that everything works on, after a centre crop and a resize."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour."""
    min_source_px: Count = 16
    """Images with a shorter side than this are rejected."""
    grey_range: tuple[int, int] | None = None
    """Values of black and of white in images of more than 8 bits: `[0, 4095]` for 12 bits in a 16-bit file, `[-1024,
    3071]` for values with a sign, `[4095, 0]` where white is the lowest value (TIFFs that say so themselves are
    inverted anyway). If not given, it is from 0 to the end of the fewest of 8, 10, 12, 14 or 16 bits that hold what a
    sample of the cohort has, and told. Images with values outside are rejected; those of 8 bits are taken as they
    are. What is transparent becomes black."""
    k_anonymity: Count = 5
    """Words, phrases and prompts that fewer patients share are scrubbed (see design section 5)."""
    prompt: Prompt = Prompt()
    """How a record becomes a prompt."""
    splits: Splits = Splits()
    """Share of patients in each split."""
    min_patients: dict[Split, Count] = {"train": 20, "identify": 20, "audit": 20, "control": 20, "test": 20}
    """Fewer patients than this in a split is an error."""
    max_images_per_patient: dict[Split, Count] = {"identify": 4, "audit": 4, "control": 1, "test": 1}
    """Further images of a patient are rejected with a reason; a split that is not named keeps all."""
    key_file: Path | None = None
    """Secret that splits, seeds, order and pseudonyms come from: 32 bytes or more, for who needs the same in two
    stores; made once in the store's `private/` if not given."""
    batch_rows: Count = 128
    """Images decoded or drawn per call."""
    actors: Count = 2
    """Parallel decoders."""

    @model_validator(mode="after")
    def _a_table_has_a_root(self) -> Self:
        if self.kind == "table" and self.root is None:
            raise ValueError("kind 'table' needs a folder: give ingest.root")
        return self

    @model_validator(mode="after")
    def _black_is_not_white(self) -> Self:
        if self.grey_range is not None and self.grey_range[0] == self.grey_range[1]:
            raise ValueError(f"grey_range: black and white differ, got {self.grey_range[0]} for both")
        return self


class Autoencoder(Section):
    """Images to latents and back."""

    kind: Literal["patch_pca", "kl", "pixel"] = "patch_pca"
    """`patch_pca`: AutoencoderDC with computed weights; `kl`: a trained AutoencoderKL; `pixel`: none."""
    latent_channels: Count = 16
    """Channels of a latent (for `pixel`: ignored)."""
    patch_px: Literal[2, 4, 8] = 8
    """How many pixels one latent position covers along a side."""
    whitening: Frac = 0.5
    """`patch_pca`: 0 keeps the PCA's variances, 1 makes them equal."""
    width: Count = 32
    """`kl`: channels of the first block."""
    n_images: Count = 100_000
    """`kl`: images seen in training."""
    lr: Positive = 1e-3
    """`kl`: peak learning rate."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6
    """`kl`: weight of the Kullback-Leibler term."""


class TextEncoder(Section):
    """Prompts to embeddings."""

    folder: Path | None = None
    """A local transformers text encoder with its tokenizer, used frozen; none trains a small one on the prompts."""
    train: bool = False
    """Whether an encoder from `folder` is trained too (raises fidelity, blurs what attention localises)."""
    width: Count = 64
    """Width of the small encoder."""
    layers: Count = 1
    """Layers of the small encoder."""
    heads: Count = 4
    """Attention heads of the small encoder."""
    max_tokens: Annotated[int, Field(ge=4)] = 32
    """Prompt length in tokens; longer prompts are an error before training."""


class Denoiser(Section):
    """The network that removes noise from latents."""

    kind: Literal["pixart", "unet"] = "pixart"
    """`pixart`: PixArtTransformer2DModel; `unet`: UNet2DConditionModel."""
    width: Count = 128
    """`pixart`: embedding width; `unet`: channels of the first block."""
    layers: Count = 4
    """`pixart`: transformer blocks; `unet`: levels."""
    heads: Count = 4
    """Attention heads."""
    patch: Count = 1
    """`pixart`: latent positions per token along a side. Few tokens learn quarters of films by heart: four kept more
    of members than 36 do (README)."""


class Generator(Section):
    """A text-to-image latent diffusion model and its training (teacher and student have one each)."""

    autoencoder: Autoencoder = Autoencoder()
    """Images to latents."""
    text: TextEncoder = TextEncoder()
    """Prompts to embeddings."""
    denoiser: Denoiser = Denoiser()
    """Latents and embeddings to noise."""
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    """What the denoiser predicts (Salimans & Ho, arXiv 2202.00512)."""
    snr_gamma: Positive | None = 5.0
    """Min-SNR weighting (arXiv 2303.09556); none weights all timesteps alike."""
    n_images: Count = 57_600
    """Training length, counted in images seen."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images per optimiser step, over all workers."""
    lr: Positive = 2e-3
    """Peak learning rate (AdamW, cosine)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """AdamW weight decay."""
    warmup_images: NonNegativeInt = 6_400
    """Images before the peak learning rate."""
    grad_clip: Positive = 1.0
    """Largest gradient norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the weight average per step; the average is what is saved."""
    prompt_drop: Frac = 0.1
    """Share of prompts replaced by the empty one, for classifier-free guidance (arXiv 2207.12598)."""
    checkpoint_images: Count = 25_600
    """Images between checkpoints."""
    seed_offset: int = 0
    """Added to the recipe's seed."""
    workers: NonNegativeInt = 1
    """Ray Train workers; 0 trains in the process of the step itself, which starts none and cannot resume."""
    min_workers: Count | None = None
    """Training goes on with as few where the cluster has no more, and takes more when they come; none wants all."""
    cpus_per_worker: Positive = 1.0
    """CPU slots of one worker; on CPU its threads too."""
    gpu: bool = False
    """Whether each worker takes a GPU."""
    market: Market | None = None
    """Kind of node to run on, by its label `ray.io/market-type`; none is any. Spot nodes may go at any time."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        most = max(1, self.workers)
        least = self.min_workers or most
        if least > most:
            raise ValueError(f"min_workers {least} must be at most workers {most}")
        if self.min_workers is not None and self.market is not None:
            # Ray 2.60 counts the room of every node, whatever its label, and then waits for ever.
            raise ValueError(f"min_workers {least} must not stand beside market {self.market}: leave one of them out")
        for n in range(least, most + 1):
            if self.batch_size % n:
                raise ValueError(f"batch_size {self.batch_size} must be a multiple of workers {n}")
        return self


class Student(Generator):
    """The student: the same, with a default of its own."""

    n_images: Count = 51_200
    """Training length, counted in images seen."""


class Augment(Section):
    """Robustness augmentation of the re-identification networks; each with its chance."""

    shift_frac: Frac = 0.1
    """Largest shift along each axis, as a share of the side."""
    rotation_deg: Annotated[float, Field(ge=0)] = 6.0
    """Largest rotation."""
    zoom: Annotated[float, Field(ge=0)] = 0.22
    """Largest zoom in or out, as a share of the size."""
    blur_frac: Frac = 0.5
    """Chance of a 3x3 blur."""
    noise_sd: Annotated[float, Field(ge=0)] = 0.08
    """Largest standard deviation of added noise, on the scale [-1, 1]."""
    gain: Annotated[float, Field(ge=0)] = 0.35
    """Largest relative change of contrast."""
    offset: Annotated[float, Field(ge=0)] = 0.1
    """Largest change of brightness, on the scale [-1, 1]."""
    jpeg_frac: Frac = 0.1
    """Chance of JPEG compression, quality 30 to 90."""
    round_trip_frac: Frac = 0.25
    """Chance of a round trip through an autoencoder fitted on the same patients."""


class Network(Section):
    """A Siamese re-identification network (Packhaeuser et al., Sci. Rep. 12:14851) and its training."""

    backbone: Literal["conv", "resnet", "resnet50"] = "conv"
    """`conv`: a small plain network; `resnet`: a small residual one; `resnet50`: the published one."""
    width: Count = 32
    """Channels of the first stage (`conv`, `resnet`)."""
    embedding: Count = 128
    """Features of a film by which patients are recognised in whatever pose."""
    eigenfilms: NonNegativeInt = 64
    """Coordinates of a film by which it is recognised in its place, as when a generator redraws it; at most a tenth
    of the films that a network is trained on. 0 leaves them out."""
    averaged_shift_px: NonNegativeInt = 0
    """A trained network averages the embeddings of a film and of its four copies shifted by this much, at five times
    the cost; 0 embeds the film alone."""
    steps: Count = 300
    """Optimiser steps."""
    patients_per_batch: Annotated[int, Field(ge=2)] = 96
    """Patients in a batch; two images of each."""
    lr: Positive = 2e-3
    """Peak learning rate (AdamW, cosine)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """AdamW weight decay."""
    dropout: Frac = 0.1
    """Dropout before the embedding."""
    hard_negative_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the InfoNCE term, which is carried by the hardest negatives of a batch."""
    seed_offset: int = 0
    """Added to the recipe's seed."""
    warm_start: Path | None = None
    """Folder of a network trained on another cohort, to start from."""


class Identify(Section):
    """The network that the filter uses, and an auditor that it never uses."""

    filter_network: Network = Network()
    """Scores the samples; trained on the `identify` patients."""
    auditor: Network = Network(backbone="resnet", seed_offset=1000)
    """Checks the result; trained on the `audit` patients."""
    augment: Augment = Augment()
    """Robustness augmentation of both."""
    auc_floor: Frac = 0.9
    """A verification AUC whose 95 % lower bound is under this stops the run ..."""
    below_floor: Literal["stop", "warn"] = "stop"
    """... or, with `warn`, lets the gate say `not enough evidence`."""
    operating_recall: Frac = 0.95
    """Recall that fixes the operating point on same-patient pairs."""
    cpus: Positive = 1.0
    """CPU slots of one training task."""
    gpu: bool = False
    """Whether a training task takes a GPU."""
    market: Market | None = None
    """Kind of node to run on, by its label `ray.io/market-type`; none is any. Spot nodes may go at any time."""


class Solver(Section):
    """How a generator makes an image."""

    steps: Count = 12
    """Denoising steps (DPM-Solver++, arXiv 2211.01095)."""
    guidance_scale: Annotated[float, Field(ge=1)] = 1.0
    """Classifier-free guidance (arXiv 2207.12598); 1 is none. It raises leakage of a teacher more than utility."""


class Sample(Solver):
    """The synthetic set to be filtered."""

    n_images: Count = 5_000
    """Images per round."""
    want_images: Count = 1_000
    """Kept images wanted; fewer starts another round ..."""
    max_rounds: Count = 2
    """... up to this many."""
    class_quota: dict[str, Count] = {}
    """Finding -> kept images wanted; a shortfall is reported."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Fixed shape that every batch is padded to."""
    block_rows: Count = 448
    """Rows lost at most when an actor dies."""
    actors: NonNegativeInt = 2
    """Largest size of the actor pool; 0 samples in the process of the step itself."""
    min_actors: NonNegativeInt = 1
    """Smallest size of the actor pool."""
    cpus_per_actor: Positive = 1.0
    """CPU slots of one actor."""
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor."""
    market: Market | None = None
    """Kind of node to run on, by its label `ray.io/market-type`; none is any. Spot nodes may go at any time."""

    @property
    def decides(self) -> dict[str, Any]:
        """What decides an image beside its prompt and seed: the solver, and the shape of a batch."""
        return self.model_dump(include={*Solver.model_fields, "batch_size"})

    @model_validator(mode="after")
    def _pool(self) -> Self:
        if self.min_actors > self.actors:
            raise ValueError(f"min_actors {self.min_actors} must be at most actors {self.actors}")
        return self


class Score(Section):
    """Largest same-patient probability of each synthetic image over the whole gallery."""

    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images embedded per call."""
    gallery_block: Count = 4_096
    """Gallery entries compared at a time."""
    poses: Literal[1, 3, 7, 11, 13] = 13
    """In how many poses each real film stands in the gallery, so that moved copies are found: 1 as it is, 3 also
    larger and smaller, 7 also to the four sides, 11 also enlarged to the four corners, 13 also turned. Comparisons
    grow with them."""
    block_rows: Count = 4_096
    """Rows lost at most when an actor dies."""
    actors: NonNegativeInt = 1
    """Size of the actor pool; 0 scores in the process of the step itself."""
    cpus_per_actor: Positive = 1.0
    """CPU slots of one actor."""
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor."""
    market: Market | None = None
    """Kind of node to run on, by its label `ray.io/market-type`; none is any. Spot nodes may go at any time."""


class FixedRule(Section):
    """Drop a score at or over a number."""

    threshold: Frac = 0.5
    """The published default."""


class PercentileRule(Section):
    """Drop what scores over a percentile of unseen patients' scores."""

    percentile: Percent = 80.0
    """Published: 95."""


class RecallRule(Section):
    """Drop enough that pairs of the same patient are caught."""

    recall: Frac = 0.95
    """Share of same-patient images that must be flagged ..."""
    confidence: Frac = 0.95
    """... with this one-sided confidence."""


class FdrRule(Section):
    """Drop by conformal p-values against control, Benjamini-Hochberg."""

    q: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Largest expected share, among the dropped images, of those that score like unseen patients' images."""


class Filter(Section):
    """Which samples are kept."""

    rule: Rule = "percentile"
    """The rule; its own section below has the parameter."""
    fixed: FixedRule = FixedRule()
    """Rule `fixed`."""
    percentile: PercentileRule = PercentileRule()
    """Rule `percentile`."""
    recall: RecallRule = RecallRule()
    """Rule `recall`."""
    fdr: FdrRule = FdrRule()
    """Rule `fdr`."""
    decoys: bool | None = None
    """Whether images too much like an unseen `control` patient are dropped as well, and what is nearest to training
    patients in the mean until the rest is no nearer to them than to these, so that neither a gap in the kept set nor
    its nearness tells who was trained on; none does it where `control` has at least as many patients as `train`."""
    max_per_class: Count | None = None
    """Most images kept of any finding, and of those that show none; the least re-identifiable stay. None is all."""


class Classifier(Section):
    """The downstream task: which findings does an image show?"""

    steps: Count = 260
    """Optimiser steps."""
    batch_size: Count = 64
    """Images per step."""
    lr: Positive = 5e-3
    """Peak learning rate (AdamW, cosine)."""
    width: Count = 24
    """Channels of the first stage."""
    shift_px: NonNegativeInt = 2
    """Largest shift in augmentation."""


class Evaluate(Section):
    """Privacy, utility and fidelity of every arm."""

    n_student: Count = 1_500
    """Student images sampled and scored with the kept set's prompts, and again with the private set's."""
    student: Solver = Solver(steps=8, guidance_scale=2.0)
    """How the student is sampled, here and by whoever reads its card. On the demo guidance of 2 took AUROC from .885
    to .92 at the same median likeness to real ones; what it must not tell was filtered before it learned."""
    n_train: Count = 900
    """Images every classifier is trained on, the same for real and synthetic."""
    large_factor: Annotated[float, Field(ge=1)] = 1.6
    """The student's classifier is trained again on this many times n_train; 1 switches it off."""
    classifier: Classifier = Classifier()
    """The downstream task."""
    encoder_steps: Count = 260
    """Steps of the domain encoder for FID and KID."""
    encoder_folder: Path | None = None
    """A saved domain encoder to use instead."""
    bootstrap: Count = 1_000
    """Resamples of patients for each interval."""
    control_percentile: Annotated[float, Field(ge=50, lt=100)] = 95.0
    """A ratio counts scores at or over this percentile of control scores, whatever rule filters (published: 95)."""
    min_control: Count = 1_000
    """Fewer control or test images than this is `not enough evidence`."""
    membership_people: Count = 600
    """Most people of each split, one film each, by whom membership is measured."""
    ssim_prompts: Count = 40
    """Prompts whose images are compared by MS-SSIM, four of each."""
    neighbours: Count = 5
    """k of precision, recall, density and coverage."""


class Strengths(Section):
    """How strongly a copy may be changed and must still be found, whatever the networks were trained on."""

    shift: Frac = 0.083
    """Shift, as a share of the side: 4 px of 48."""
    rotation: Annotated[float, Field(ge=0)] = 5.0
    """Degrees."""
    zoom_in: Annotated[float, Field(ge=0)] = 0.18
    """Enlarged by this share."""
    zoom_out: Annotated[float, Field(ge=0)] = 0.18
    """Made smaller by the inverse of this."""
    crop: Annotated[float, Field(ge=0, lt=0.6)] = 0.15
    """Share of the side that is cut off, at a random place; the rest is enlarged."""
    gain_up: Annotated[float, Field(ge=0)] = 0.3
    """More contrast, by this share."""
    gain_down: Annotated[float, Field(ge=0, lt=0.66)] = 0.3
    """Less contrast."""
    blur: Frac = 0.015
    """Standard deviation of a Gaussian blur, as a share of the side."""
    noise: Annotated[float, Field(ge=0)] = 0.06
    """Standard deviation on the scale [-1, 1], about twice a film's own."""
    jpeg: Annotated[float, Field(ge=0, lt=66)] = 50.0
    """Points of JPEG quality below 100."""


class Gate(Section):
    """Conditions under which the package may leave; each is judged pass, fail or not enough evidence."""

    max_excess: Frac = 0.05
    """Largest upper 95 % bound of the auditor's ratio over control, for the student and the kept set."""
    max_excess_strict: Frac = 0.02
    """The same at the 99th percentile of control: the surest matches."""
    max_near_copies: Frac = 0.005
    """Largest upper 95 % bound of the share of the student's images that nearly equal a real one pixel by pixel, over
    that of strangers' films."""
    min_recall: Frac = 0.9
    """Smallest share of changed copies of training images that each of the two networks flags, at the threshold that
    it is used with: of the kind of change that it finds worst, at the strengths below."""
    strengths: Strengths = Strengths()
    """Changes that must be survived."""
    near_timestep_frac: Frac = 0.5
    """How far a real image is noised before the teacher denoises it, to make a near-duplicate; one more kind."""
    min_coverage: Frac = 0.3
    """Smallest coverage of the real test set by the student (no collapse), as a share of what as many other real
    images cover."""
    max_membership: Annotated[float, Field(ge=0.5, le=1)] = 0.65
    """Largest upper 95 % bound of the AUC with which an attacker tells who was trained on: by the student's loss on a
    film, by the gaps in the kept set, and by nearness to it and to the student's images."""
    max_membership_many: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """The same of people with four films or more, by loss and nearness: they are few, so that intervals are wide."""
    n_probe: Count = 400
    """Training images that are changed for the recall conditions."""


class Release(Section):
    """The package that leaves the building."""

    gate: Literal["enforce", "report"] = "enforce"
    """`enforce` withholds a package that is not cleared; `report` writes it with a banner."""
    conditions: Gate = Gate()
    """When it may leave."""
    title: str = "Synthetic chest X-rays"
    """Name on the cards."""
    licence: str = "other"
    """Licence named on the cards."""
    n_images: Count = 1_500
    """Most kept images in the released set."""


LOCAL_MLFLOW = "local"


class Tune(Section):
    """The study: how strict must the filter be, and what does that cost? Ranges are tried from end to end."""

    trials: Count = 16
    """Settings tried; one of them is the recipe's own, one has no filter."""
    rules: tuple[Rule, ...] = ("percentile", "recall", "fdr", "fixed")
    """Rules tried, each within its range below."""
    fixed: tuple[Frac, Frac] = (0.01, 0.9)
    """Thresholds, on a logarithmic scale."""
    percentile: tuple[Percent, Percent] = (30.0, 99.0)
    """Percentiles of unseen patients' scores."""
    recall: tuple[Frac, Frac] = (0.5, 0.99)
    """Recalls of images of the same patient."""
    fdr: tuple[Frac, Frac] = (0.01, 0.5)
    """False discovery rates, on a logarithmic scale."""
    guidance_scale: tuple[Annotated[float, Field(ge=1)], ...] = ()
    """Guidance scales tried; each other than the recipe's samples the teacher anew. Empty keeps the recipe's."""
    max_per_class: tuple[Count, ...] = ()
    """Caps on the kept images of a finding that are tried; empty keeps the recipe's."""
    climb: tuple[Count, Count] = (6, 4)
    """Most settings that are measured with a short student, and of these with full ones."""
    short_frac: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Length of a short student's training and of its test, as a share of the full one's."""
    student_seeds: Annotated[int, Field(ge=2)] = 2
    """Full students of each setting on the highest rung; the spread between them makes the intervals."""
    max_ratio: Frac = 0.1
    """The question: which setting is most useful while the ratio by the study's own judge is at most this, with 95 %
    confidence? What the auditor says to the answer is told beside it."""
    concurrent: Count = 2
    """Trials that run side by side."""
    mlflow: str | None = None
    """MLflow that trials are logged to as well: `local` for an SQLite file in the store's `private/`, or the address
    of a tracking server; none logs nothing. Needs `pip install 'privacy-distillation[mlflow]'`."""

    @model_validator(mode="after")
    def _address_without_password(self) -> Self:
        if self.mlflow and re.match(r"[^/]*//[^/]*@", self.mlflow):
            # The address is not repeated: what is told goes into logs.
            raise ValueError(
                "tune.mlflow: want an address, got one with credentials in it — give them in the environment, as "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self

    @model_validator(mode="after")
    def _has_a_space(self) -> Self:
        if not self.rules or set(self.rules) == {"none"}:
            raise ValueError("tune.rules: want a rule with a range to try, got none — name one, e.g. [percentile]")
        for rule in self.rules:
            low, high = getattr(self, rule) if rule != "none" else (0, 1)
            if low >= high:
                raise ValueError(f"tune.{rule}: want a range from low to high, got {low:g} to {high:g}")
            if low == 0 and rule in ("fixed", "fdr"):
                raise ValueError(f"tune.{rule}: want a range over 0, as its scale is logarithmic, got {low:g}")
        return self


class Cluster(Section):
    """The machine that the steps run on."""

    address: str | None = None
    """Ray address; none starts Ray on this machine."""
    autoscaling: bool = False
    """Whether nodes come with the work: pools are then not held to the nodes that are there at the start."""
    parallel_tasks: Count = 2
    """Heavy steps that may run side by side; on a laptop one thread each beats two threads for one."""
    object_store_gb: Positive = 1.0
    """Object store of a local Ray."""
    hang_s: Positive = 900.0
    """A worker that takes longer for one batch, or for one training step, is taken for hanging: it is ended and its
    work tried again."""


class Recipe(Section):
    """A whole run. Every key can be overridden: `--sample.steps 8`."""

    name: str = "phantom"
    """What the run is called in reports."""
    seed: int = 0
    """Origin of every random number."""
    ingest: Ingest = Ingest()
    """Cohort to records."""
    teach: Generator = Generator()
    """Records to teacher."""
    identify: Identify = Identify()
    """Records to re-identification networks."""
    sample: Sample = Sample()
    """Teacher to synthetic images."""
    score: Score = Score()
    """Synthetic images to risk."""
    filter: Filter = Filter()
    """Risk to keep or drop."""
    distill: Student = Student()
    """Kept images to student."""
    evaluate: Evaluate = Evaluate()
    """Everything to metrics."""
    release: Release = Release()
    """Student, kept images and metrics to a package."""
    tune: Tune = Tune()
    """Filter settings to a front of privacy and utility."""
    cluster: Cluster = Cluster()
    """Where it runs; never part of a fingerprint."""

    @property
    def student_sample(self) -> Sample:
        """How the student is sampled: like the teacher, but for its own solver."""
        return self.sample.model_copy(update=dict(self.evaluate.student))

    @model_validator(mode="after")
    def _geometry(self) -> Self:
        if self.ingest.image_px % 8:
            raise ValueError(f"ingest.image_px {self.ingest.image_px} must be a multiple of 8, as diffusers wants it")
        for word in ("teach", "distill"):
            generator: Generator = getattr(self, word)
            position_px = 1 if generator.autoencoder.kind == "pixel" else generator.autoencoder.patch_px
            patch = generator.denoiser.patch if generator.denoiser.kind == "pixart" else 1
            if self.ingest.image_px % (position_px * patch):
                raise ValueError(
                    f"ingest.image_px {self.ingest.image_px} must be a multiple of {word}'s autoencoder.patch_px "
                    f"{position_px} x denoiser.patch {patch}"
                )
            n_values = self.ingest.channels * position_px**2
            if generator.autoencoder.kind == "patch_pca" and generator.autoencoder.latent_channels > n_values:
                raise ValueError(
                    f"{word}.autoencoder.latent_channels {generator.autoencoder.latent_channels} must be at most "
                    f"{n_values}, the values of a patch of {position_px} px"
                )
            if generator.denoiser.width % generator.denoiser.heads:
                raise ValueError(
                    f"{word}.denoiser.width {generator.denoiser.width} must be a multiple of heads "
                    f"{generator.denoiser.heads}"
                )
            if generator.denoiser.kind == "unet" and generator.autoencoder.kind == "patch_pca":
                raise ValueError(f"{word}: denoiser 'unet' needs autoencoder 'kl' or 'pixel', got 'patch_pca'")
        return self


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced, validated: `changed(r, {"filter.rule": "none"})`."""
    tree = recipe.model_dump()
    for dotted, value in changes.items():
        *path, leaf = dotted.split(".")
        node = tree
        for name in path:
            node = node[name]
        node[leaf] = value
    return validated(Recipe, tree, "changed recipe")


def read(path: Path) -> Recipe:
    """The recipe in a YAML file; keys that are left out take the documented defaults.

    Raises: ConfigError if the file is missing, not a mapping, has an unknown key or an impossible value.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f" — did you mean {path.parent / near[0]}?" if near else " — give the path of a recipe"
        raise ConfigError(f"recipe: want a YAML file, got nothing at {path}{hint}")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: want YAML, got {' '.join(str(error).split())} — correct it") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path}: want a mapping of sections, got {type(tree).__name__}")
    return validated(Recipe, tree, f"recipe {path}")


def canonical(section: Any) -> str:
    """A section as JSON with sorted keys, the form that is fingerprinted."""
    tree = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    return json.dumps(tree, sort_keys=True, separators=(",", ":"))


def validated(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """The tree as this model.

    Raises: ConfigError, which names every unknown key (with the nearest known one) and impossible value.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def _explain(model: type[BaseModel], detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys_at(model, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"key '{key}': want a known key, got an unknown one — {hint}"
    if detail["type"] == "missing":
        return f"key '{key}': want a value, got none — give one"
    message = detail["msg"].removeprefix("Value error, ")
    return f"key '{key}': {message} (got {detail['input']!r})" if key and not _is_tree(detail) else message


def _is_tree(detail: Any) -> bool:
    return isinstance(detail["input"], dict | BaseModel)


def _keys_at(model: Any, path: Sequence[Any]) -> list[str]:
    for name in path:
        # A mapping's names are free; its values are of one model.
        model = model.model_fields[name].annotation if hasattr(model, "model_fields") else get_args(model)[1]
    return list(model.model_fields)
