"""Words and sizes of small models of LAVIS that are built from its own kind of config."""

TEXTS = ["two dogs play on the grass", "a cat", "the left image shows a dog"]
ANSWERS = ["dog", "cat", "two cat", "the grass", "left image"]
WORDS = [*TEXTS, *ANSWERS, "is it red blue green yes no what color ?", "picture of"]
SIZES = {
    "vision": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4},
    "text": {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "max_position_embeddings": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
