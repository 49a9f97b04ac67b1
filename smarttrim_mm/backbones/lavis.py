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

from smarttrim_mm.backbones.fusion import FusionBackbone, FusionClassifier, ImageEncoder
from smarttrim_mm.backbones.fusion_answers import FusionAnswerer
from smarttrim_mm.backbones.fusion_captions import FusionCaptioner
from smarttrim_mm.backbones.fusion_retrieval import FusionRetriever
from smarttrim_mm.backbones.given_tokens import GivenTokens, PromptTokens, encoding
from smarttrim_mm.backbones.lavis_checkpoint import load_public
from smarttrim_mm.backbones.lavis_host import host_options, import_lavis, refuse_decoder
from smarttrim_mm.backbones.lavis_sdpa import SdpaAttention
from smarttrim_mm.backbones.lavis_vision import vision_of
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.registry import LAVIS_ARCHS, MODELS

_VISION: dict[str, dict[str, Any]] = {  # LAVIS writes them in the code of its ViT, by the vit_type of its config files
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "drop_path_rate": 0.1},
}


@MODELS.register_module()
class LavisBackbone(FusionBackbone):
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

    lavis_name: str | None = None  # of the model in LAVIS's registry, where ``arch`` is another
    has_memory = False  # whether momentum copies run, and fill a queue
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
        self.adopt(host, arch, text_first, share_images)
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
        backbone.adopt(host, arch, text_first, share_images)
        return backbone

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

    @cached_property
    def vision(self) -> ImageEncoder:
        """See :class:`~smarttrim_mm.backbones.fusion.FusionBackbone`, like the next."""
        return vision_of(self.host.visual_encoder)

    @property
    def text_encoder(self) -> Any:
        return self.host.text_encoder

    def with_sdpa(self) -> SdpaAttention:
        """Within it :meth:`host_forward` attends by ``scaled_dot_product_attention``."""
        return SdpaAttention(self.host)

    def samples_of(self, inputs: VLMInputs) -> dict[str, Any]:
        """Images and texts as LAVIS passes them, each sample with its own."""
        self.check(inputs)
        inputs, each = inputs.unshared(), self.images_per_text
        names = ["image"] if each == 1 else [f"image{i}" for i in range(each)]
        words = encoding(inputs.input_ids[::each], inputs.text_mask[::each])
        return {**{name: inputs.images[i::each] for i, name in enumerate(names)}, "text_input": words}

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


class LavisClassifier(FusionClassifier, LavisBackbone):
    """A LAVIS model with a head on the first token of its multi-modal encoder."""

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


class LavisAnswerer(FusionAnswerer, LavisBackbone):
    """A LAVIS model that ranks a list of answers."""

    encoder_outputs = 2  # values of LAVIS's forward_encoder, of which the first is read

    @property
    def decoder(self) -> Any:
        return self.host.text_decoder

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        samples = self.samples_of(inputs)
        mask: Tensor = samples["text_input"].attention_mask
        return self.host_states(samples), mask

    def host_states(self, samples: dict[str, Any]) -> Tensor:
        """LAVIS's own encoders on a batch as LAVIS passes it: [G, T, D]."""
        states: Tensor = self.host.forward_encoder(samples)[0].last_hidden_state
        return states


class LavisCaptioner(FusionCaptioner, LavisBackbone):
    """A LAVIS model that writes about an image; ``text`` goes to its decoder.

    LAVIS's own forward has a ``prompt`` too, a text or its token ids; left out: that of the config file, a text.
    """

    @property
    def decoder(self) -> Any:
        return self.host.text_decoder

    def host_tokenizer(self, arguments: Mapping[str, Any]) -> GivenTokens:
        config = arguments["text_decoder"].config
        return PromptTokens(config.vocab_size, config.pad_token_id, arguments["prompt"], self.tokenizer)

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        states: Tensor = self.host.forward_encoder(self.samples_of(inputs))
        return states, torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)


class LavisRetriever(FusionRetriever, LavisBackbone):
    """A LAVIS model that scores image-text pairs."""

    has_memory = True

    @property
    def image_proj(self) -> nn.Linear:
        """See :class:`~smarttrim_mm.backbones.fusion_retrieval.FusionRetriever`, like what follows."""
        project: nn.Linear = self.host.vision_proj
        return project

    @property
    def text_proj(self) -> nn.Linear:
        project: nn.Linear = self.host.text_proj
        return project

    @property
    def match_head(self) -> nn.Module:
        head: nn.Module = self.host.itm_head
        return head

    @property
    def queue(self) -> Any:
        return self.host

    def momentum(self, images: Tensor, text: Any) -> tuple[Tensor, Tensor]:
        host = self.host
        image = host.vision_proj_m(host.visual_encoder_m(images)[:, 0])
        return image, host.text_proj_m(host.text_encoder_m.forward_text(text).last_hidden_state[:, 0])

    @torch.no_grad()
    def bound_temperature(self) -> None:
        self.host.temp.clamp_(0.001, 0.5)

    def host_images(self, images: Tensor) -> Tensor:
        states: Tensor = self.host.visual_encoder.forward_features(images)
        return states
