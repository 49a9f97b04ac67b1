# Parts of mmpretrain's BLIP (arXiv 2201.12086), as its configs/blip/ have them: ViT-B/16 and a BERT that reads images. The
# models beside this file are made of them, key for key those of mmpretrain, but for tokenizers and lists of answers, which
# come from the network there.
vision = dict(type="VisionTransformer", arch="b", img_size=384, patch_size=16, out_type="raw")
bert = dict(
    architectures=["BertModel"],
    attention_probs_dropout_prob=0.1,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    hidden_size=768,
    initializer_range=0.02,
    intermediate_size=3072,
    layer_norm_eps=1e-12,
    max_position_embeddings=512,
    model_type="bert",
    num_attention_heads=12,
    num_hidden_layers=12,
    pad_token_id=0,
    add_type_embeddings=False,
    vocab_size=30524,
    encoder_width=768,
    add_cross_attention=True,
)
