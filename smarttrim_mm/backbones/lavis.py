"""Models of LAVIS (Li et al., arXiv 2209.09019) as backbones: what its families share.

``salesforce-lavis`` is optional: nothing here imports it before a model is built. A model is built by LAVIS's own
constructors from the sizes in LAVIS's own config files; nothing is downloaded. It keeps its parameters, its state dict below
``host.``, and its forward, which is :meth:`LavisClassifier.host_forward`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from transformers import BertConfig

from smarttrim_mm.backbones.lavis_checkpoint import load_public
from smarttrim_mm.backbones.lavis_host import (
    GivenTokens,
    encoding,
    host_options,
    import_lavis,
    linears,
    refuse_decoder,
    vit_view,
)
from smarttrim_mm.backbones.lavis_sdpa import SdpaAttention
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.bert_views import bert_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.pairs import PairLogits
from smarttrim_mm.registry import LAVIS_ARCHS, MODELS
from smarttrim_mm.structures import TokenStream

_VISION: dict[str, dict[str, Any]] = {  # LAVIS writes them in the code of its ViT, by the vit_type of its config files
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "drop_path_rate": 0.1},
}
_CLS, _SEP = 101, 102  # bert-base-uncased


@MODELS.register_module()
class LavisBackbone(nn.Module):
    """A model of LAVIS, by LAVIS's name for it.

    Called with ``arch`` it makes an instance of the subclass that :data:`~smarttrim_mm.registry.LAVIS_ARCHS` has for it.

    Args:
        arch: LAVIS's name of the model: ``'blip_nlvr'``.
        model_type: LAVIS's name of a config file of that model; None: its first one.
        vision: Arguments of LAVIS's ``VisionTransformerEncoder`` (``img_size``, ``drop_path_rate``); what is left out is as in
            the config file.
        text: Entries of LAVIS's BERT configuration (``hidden_dropout_prob``), likewise.
        decoder: More of them for the text decoder, in models that have one.
        text_first: Whether the text's [CLS] guides the policy inside the image encoder. Each pair then has an image encoding
            of its own. BLIP's text encoder runs once more for it, uni-modally, if the policy wants it; in ALBEF, whose first
            layers are uni-modal, it is an order.
        share_images: Whether texts of one batch that ask about the same image share its encoding; None: unless
            ``text_first``.
        checkpoint: Where a training starts: a public checkpoint of the model or of its pre-training, read by
            :meth:`init_weights`.
        options: Arguments of LAVIS's class besides its encoders (``num_classes``); what is left out is as in the config file,
            but for ``use_distill``, which is False where momentum copies never run: everywhere but in retrieval.

    Raises:
        ImportError: If LAVIS cannot be imported.
        KeyError: If the architecture is unknown.
        TypeError: If LAVIS's class has no such argument, or lacks one.
        ValueError: If the model type is unknown, there is no decoder to set, or ``text_first`` and ``share_images`` are both
            asked for.
    """

    host: Any  # LAVIS has no types
    lavis_name: str | None = None  # of the model in LAVIS's registry, where ``arch`` is another
    images_per_text = 1
    has_memory = False  # whether momentum copies run, and fill a queue
    encodes = False  # whether [ENC] takes the place of [CLS] in the multi-modal encoder
    anew: frozenset[str] = frozenset()  # streams that enter the fusion stage whole again
    text_defaults: Mapping[str, Any] = {}
    decoder_defaults: Mapping[str, Any] = {}
    option_defaults: Mapping[str, Any] = {}  # of LAVIS's from_config, where its constructor has others
    host_methods: Mapping[str, Any] = {}  # in place of LAVIS's, where its own know one size only

    def __new__(cls, *, arch: str | None = None, **_: Any) -> LavisBackbone:
        return super().__new__(LAVIS_ARCHS.get(arch) if cls is LavisBackbone and arch is not None else cls)

    def __init__(
        self,
        *,
        arch: str,
        model_type: str | None = None,
        vision: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        text_first: bool = False,
        share_images: bool | None = None,
        checkpoint: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        device = torch.get_default_device()
        with torch.device("cpu"):  # LAVIS reads numbers off a tensor, which the meta device does not have
            host = self._build(arch, model_type, vision or {}, text or {}, decoder or {}, options)
        self._adopt(host, arch, text_first, share_images)
        if device.type != "cpu":
            self.host.to(device)

    @classmethod
    def around(cls, host: Any, *, arch: str, text_first: bool = False, share_images: bool | None = None) -> LavisBackbone:
        """The adapter of a LAVIS model that is there already; it has neither a checkpoint nor answers to rank.

        Args:
            host: The model.
            arch: As in the constructor, like the others.
            text_first: Likewise.
            share_images: Likewise.
        """
        backbone = cls.__new__(cls, arch=arch)
        nn.Module.__init__(backbone)
        backbone.checkpoint = None
        backbone._adopt(host, arch, text_first, share_images)
        return backbone

    def _adopt(self, host: Any, arch: str, text_first: bool, share_images: bool | None) -> None:
        if text_first and share_images:
            raise ValueError(
                "text_first=True and share_images=True exclude each other: an image encoding that the text has guided belongs "
                "to that text alone. Leave share_images out, or set text_first=False."
            )
        self.arch, self.host, self.text_first = arch, host, text_first
        self.share_images = not text_first if share_images is None else share_images
        self.check_host()

    def check_host(self) -> None:
        """Refuses a host that cannot be trimmed.

        Raises:
            ValueError: If no layer of the text encoder reads the image.
        """
        if "fusion" not in self.steps:
            config = self.text_config
            raise ValueError(
                f"no layer of the text encoder reads the image: text.fusion_layer is {config.fusion_layer} of "
                f"{config.num_hidden_layers} layers; expected fewer uni-modal layers"
            )

    @classmethod
    def small_configs(cls) -> dict[str, dict[str, Any]]:
        """Configs of small instances of every architecture, by its name and the variant's."""
        LAVIS_ARCHS.import_from_location()
        return {
            f"{arch} {name}": {"type": "LavisBackbone", "arch": arch, **config}
            for arch, kind in sorted(LAVIS_ARCHS.module_dict.items())
            for name, config in kind.variants().items()
        }

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Arguments of small instances of this architecture by name, see :func:`small`."""
        raise NotImplementedError(f"{cls.__name__} does not define variants()")

    @staticmethod
    def text_class() -> type[nn.Module]:
        """LAVIS's class of the text encoder."""
        return import_lavis("lavis.models.med").XBertEncoder

    def init_weights(self) -> None:
        """Loads ``checkpoint``; the Runner calls this before a training, ahead of ``load_from`` and ``resume``."""
        if self.checkpoint is not None:
            found = self.load(self.checkpoint)
            print_log(f"{self.arch} starts from {self.checkpoint}:\n{found.table()}", logger="current")

    def load(self, path: str) -> Conversion:
        """Loads a public checkpoint, see :func:`~smarttrim_mm.backbones.lavis_checkpoint.load_public`."""
        return load_public(self.host, path)

    @property
    def input_format(self) -> dict[str, int]:
        """Sizes and token ids of the inputs and answers, see :func:`smarttrim_mm.utils.random_inputs.random_inputs`."""
        config = self.text_config
        return {
            "image_size": self.image_size[0],
            "vocab_size": config.vocab_size,
            "begin_id": _CLS if config.bos_token_id is None else config.bos_token_id,
            "end_id": _SEP if config.eos_token_id is None else config.eos_token_id,
            "pad_id": config.pad_token_id,
            "max_text_length": config.max_position_embeddings,
            "images_per_text": self.images_per_text,
        }

    @property
    def text_config(self) -> Any:
        """The configuration of the texts' transformer, as transformers has it."""
        return self.host.text_encoder.config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.host.visual_encoder.patch_embed.img_size

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers by stage, in the order of execution: ``image``, ``text`` (uni-modal, if any), ``fusion``."""
        vit, encoder = self.host.visual_encoder, self.host.text_encoder
        fusing = [layer for layer in encoder.encoder.layer if hasattr(layer, "crossattention")]
        text = [LayerStep(f"text.{i}", {"text": bert_view(layer, "text")}) for i, layer in enumerate(self.uni_modal())]
        image = self.image_steps()
        fusion = [
            LayerStep(
                f"fusion.{i}",
                {"text": bert_view(layer, "text", *self.reads(i))},
                memories=dict.fromkeys(self.reads(i), vit.embed_dim),
                anew=self.anew if i == 0 else frozenset(),
            )
            for i, layer in enumerate(fusing)
        ]
        stages = {"text": text, "image": image} if self.text_first else {"image": image, "text": text}
        return {name: steps for name, steps in {**stages, "fusion": fusion}.items() if steps}

    def uni_modal(self) -> list[Any]:
        """The text encoder's layers that run before the image is read: in ALBEF, those without cross-attention."""
        return [layer for layer in self.host.text_encoder.encoder.layer if not hasattr(layer, "crossattention")]

    def image_steps(self) -> list[LayerStep]:
        """Views of the image encoder's layers."""
        guides = {"text": self.text_config.hidden_size} if self.text_first else {}
        blocks = self.host.visual_encoder.blocks
        return [LayerStep(f"image.{i}", {"image": vit_view(block, "image")}, guides) for i, block in enumerate(blocks)]

    @cached_property
    def ahead(self) -> list[LayerStep]:
        """Views of the text encoder's layers without their cross-attention: BLIP's uni-modal mode."""
        layers = self.host.text_encoder.encoder.layer
        return [LayerStep(f"ahead.{i}", {"text": bert_view(layer, "text")}) for i, layer in enumerate(layers)]

    def reads(self, index: int) -> tuple[str, ...]:
        """The image streams that a layer of the fusion stage reads."""
        return ("image",)

    def embed_text(self, inputs: VLMInputs, first: Tensor, encodes: bool) -> TokenStream:
        """Embeddings of the texts, padded: [A, T, D].

        Args:
            inputs: The batch.
            first: The pair whose text each answer is about, long [A].
            encodes: Whether [ENC], the last id of BLIP's vocabulary, takes the place of [CLS].
        """
        rows = first if inputs.text_index is None else inputs.text_index[first]
        ids = inputs.input_ids[rows]
        if encodes:
            ids[:, 0] = self.enc_token_id
        x = self.host.text_encoder.embeddings(input_ids=ids)
        mask, special = inputs.text_mask[rows], inputs.special_mask[rows]
        return TokenStream.start(x, ids=inputs.sample_ids[first], valid=mask, special=special)

    def read_images(self, inputs: VLMInputs, execution: Execution, guides: Mapping[str, Tensor]) -> TokenStream:
        """Runs the image encoder: [I, P + 1, D], padded or packed."""
        vit, rows = self.host.visual_encoder, inputs.image_index
        patches = vit.patch_embed(inputs.images)
        x = torch.cat([vit.cls_token.to(patches.dtype).expand(len(patches), -1, -1), patches], 1)
        x = vit.pos_drop(x + vit.pos_embed)
        count = vit.patch_embed.proj.weight.numel() * patches.shape[1]
        execution.linear(count, name="image.patches", instances=len(patches), rows=rows)
        image = execution.start(TokenStream.start(x, ids=inputs.image_ids))
        return execution.run(self.steps["image"], {"image": image}, guides=guides, rows=rows)["image"].map(vit.norm)

    def encode(self, inputs: VLMInputs, execution: Execution) -> TokenStream:
        """Runs image encoder and text encoder: the texts that have read their images, an instance a sample.

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        self._check(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        each = self.images_per_text
        pairs = torch.arange(len(inputs.sample_ids), device=inputs.sample_ids.device)
        first, rows = pairs[::each], None if each == 1 else pairs // each  # an answer's first pair, and a pair's answer
        guides: dict[str, Tensor] = {}
        text: TokenStream | None = None
        if self.text_first and "text" in self.steps:
            text = self._read_text(inputs, first, execution, rows)
            guides["text"] = text.guide()
        elif self.text_first and any(execution.policy.reads(step) for step in self.steps["image"]):
            words = execution.start(self.embed_text(inputs, first, encodes=False))
            guides["text"] = execution.read_ahead(self.ahead, {"text": words}, rows=rows)["text"].guide()
        if rows is not None:
            guides = {name: guide[rows] for name, guide in guides.items()}
        image = self.read_images(inputs, execution, guides)
        if text is None:
            text = self._read_text(inputs, first, execution, rows)
        # from here on an image belongs to its pair
        index = pairs if inputs.image_index is None else inputs.image_index
        names = ["image"] if each == 1 else [f"image{i}" for i in range(each)]
        images = {name: image.expand(index[i::each], inputs.sample_ids[i::each]) for i, name in enumerate(names)}
        return execution.run(self.steps["fusion"], {"text": text, **images}, rows=rows)["text"]

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """LAVIS's own forward."""
        raise NotImplementedError(f"{type(self).__name__} does not define host_forward()")

    def with_sdpa(self) -> SdpaAttention:
        """Within it :meth:`host_forward` attends by ``scaled_dot_product_attention``."""
        return SdpaAttention(self.host)

    def samples_of(self, inputs: VLMInputs) -> dict[str, Any]:
        """Images and texts as LAVIS passes them, each sample with its own."""
        self._check(inputs)
        inputs, each = inputs.unshared(), self.images_per_text
        names = ["image"] if each == 1 else [f"image{i}" for i in range(each)]
        words = encoding(inputs.input_ids[::each], inputs.text_mask[::each])
        return {**{name: inputs.images[i::each] for i, name in enumerate(names)}, "text_input": words}

    def _read_text(self, inputs: VLMInputs, first: Tensor, execution: Execution, rows: Tensor | None) -> TokenStream:
        """The text as it enters the fusion stage."""
        text = execution.start(self.embed_text(inputs, first, self.encodes))
        return execution.run(self.steps.get("text", []), {"text": text}, rows=rows)["text"]

    def _check(self, inputs: VLMInputs) -> None:
        if inputs.pairs_per_sample != self.images_per_text:
            raise ValueError(
                f"a sample of the batch has {inputs.pairs_per_sample} image-text pairs, and {self.arch} answers about "
                f"{self.images_per_text}; choose the data set by the model"
            )
        self._check_size(inputs)

    def _check_size(self, inputs: VLMInputs) -> None:
        size = self.image_size
        if inputs.images.shape[-2:] != size:
            raise ValueError(
                f"images are {tuple(inputs.images.shape[-2:])} pixels; expected {size[0]} by {size[1]}. Resize them in the "
                "data pipeline, or set the backbone's vision.img_size"
            )

    @property
    def enc_token_id(self) -> int:
        """Id of [ENC], which BLIP's tokenizer adds last."""
        return self.text_config.vocab_size - 1

    def _build(
        self,
        arch: str,
        model_type: str | None,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        decoder: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        host_class = self.lavis_class(arch)
        types = host_class.PRETRAINED_MODEL_CONFIG_DICT
        if model_type is not None and model_type not in types:
            raise ValueError(f"model_type is {model_type!r}; LAVIS's {arch} has {', '.join(map(repr, types))}")
        path = host_class.default_config_path(next(iter(types)) if model_type is None else model_type)
        settings = import_lavis("omegaconf").OmegaConf.load(path).model
        arguments = self.host_arguments(host_class, arch, settings, vision, text, decoder, options)
        tokenizer = self.host_tokenizer(arguments)
        methods = {"init_tokenizer": classmethod(lambda cls: tokenizer), **self.host_methods}
        return type(host_class.__name__, (host_class,), methods)(**arguments)

    def host_tokenizer(self, arguments: Mapping[str, Any]) -> GivenTokens:
        """What stands for the tokenizer in a model that LAVIS's constructor makes of these arguments."""
        config = arguments.get("text_encoder", arguments.get("text_decoder")).config
        return GivenTokens(config.vocab_size, config.pad_token_id)

    @classmethod
    def lavis_class(cls, arch: str) -> Any:
        """LAVIS's class of an architecture of this kind."""
        return import_lavis("lavis").registry.get_model_class(cls.lavis_name or arch)

    @classmethod
    def host_arguments(
        cls,
        host_class: Any,
        arch: str,
        settings: Any,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        decoder: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What LAVIS's constructor of a model takes: its encoders and decoder, new, and its options.

        Args:
            host_class: LAVIS's class.
            arch: LAVIS's name of it.
            settings: The section ``model`` of a LAVIS config file, as OmegaConf reads it.
            vision: As in the constructor, like the others.
            text: Likewise.
            decoder: Likewise.
            options: Likewise.
        """
        drop_path = {"drop_path_rate": rate} if (rate := settings.get("vit_drop_path_rate")) else {}
        sizes = {"img_size": settings.image_size, **drop_path, **_VISION[settings.vit_type], **vision}
        image_encoder = import_lavis("lavis.models.vit").VisionTransformerEncoder(**sizes)
        image_encoder.vision_width = sizes["embed_dim"]  # as its from_config does
        bert, _ = BertConfig.get_config_dict(import_lavis("lavis.common.utils").get_abs_path(settings.med_config_path))
        bert |= {**cls.text_defaults, **text}
        parts, width = {"image_encoder": image_encoder}, sizes["embed_dim"]
        named = inspect.signature(host_class.__init__).parameters
        if "text_encoder" in named:
            config = BertConfig(**{**bert, "encoder_width": width})
            parts["text_encoder"] = cls.text_class()(config=config, add_pooling_layer=False)
            width = config.hidden_size
        if "text_decoder" in named:
            config = BertConfig(**{**bert, **cls.decoder_defaults, **decoder, "encoder_width": width})
            parts["text_decoder"] = import_lavis("lavis.models.med").XBertLMHeadDecoder(config=config)
        else:
            refuse_decoder(decoder, arch)
        if "use_distill" in named and not cls.has_memory:
            options = {"use_distill": False, **options}
        return {**parts, **host_options(host_class, settings, options, defaults=cls.option_defaults, besides=parts)}


class LavisClassifier(LavisBackbone):
    """A LAVIS model with a head on the first token of its multi-modal encoder."""

    head_name = "cls_head"

    @property
    def head(self) -> nn.Module:
        """The head, [A, D] -> [A, C]."""
        return getattr(self.host, self.head_name)

    @property
    def input_format(self) -> dict[str, int]:
        """See :class:`LavisBackbone`."""
        return {**super().input_format, "num_classes": linears(self.head)[-1].out_features}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.

        Returns:
            Logits, [G, C].

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        text = self.encode(inputs, execution)
        count = sum(linear.weight.numel() for linear in linears(self.head))
        execution.linear(count, name=f"head.{self.head_name}", pairs=self.images_per_text)
        return self.head(text.guide())

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """LAVIS's own forward.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward`.
        """
        return self.call_host({**self.samples_of(inputs), "label": inputs.sample_ids[:: self.images_per_text]})

    def call_host(self, samples: dict[str, Any]) -> Tensor:
        """LAVIS's own forward on a batch as LAVIS passes it, logits [G, C]."""
        return self.host(samples, is_train=False)["predictions"]
