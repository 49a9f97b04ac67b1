# How BLIP (arXiv 2201.12086) and ALBEF prepare images and texts, as LAVIS does. The data sets beside this file start from it.
# The image is squeezed into a square. RandAugment: 2 of these 10 steps at strength 5 of 10, each half of the time; at that
# strength LAVIS's brightness and sharpness change nothing, and a shift is of 5 pixels.
image_size = 384
nothing = dict(type="mmpretrain.Brightness", magnitude=0.0)
crop = dict(
    type="mmpretrain.RandomResizedCrop",
    scale=image_size,
    crop_ratio_range=(0.5, 1.0),
    interpolation="bicubic",
    backend="pillow",
)
flip = dict(type="mmpretrain.RandomFlip", prob=0.5, direction="horizontal")
augment = dict(
    type="mmpretrain.RandAugment",
    num_policies=2,
    magnitude_level=5,
    total_level=10,
    hparams=dict(pad_val=128),
    policies=[
        nothing,
        nothing,
        nothing,
        dict(type="mmpretrain.AutoContrast"),
        dict(type="mmpretrain.Equalize"),
        dict(type="mmpretrain.Shear", magnitude_range=(0, 0.3), direction="horizontal", interpolation="bilinear"),
        dict(type="mmpretrain.Shear", magnitude_range=(0, 0.3), direction="vertical", interpolation="bilinear"),
        dict(type="mmpretrain.Translate", magnitude_range=(0, 0.026), direction="horizontal", interpolation="bilinear"),
        dict(type="mmpretrain.Translate", magnitude_range=(0, 0.026), direction="vertical", interpolation="bilinear"),
        dict(type="mmpretrain.Rotate", magnitude_range=(0, 30), interpolation="bilinear"),
    ],
)
resize = dict(type="mmpretrain.Resize", scale=(image_size, image_size), interpolation="bicubic", backend="pillow")
tokenizer = dict(type="PretrainedTokenizer", name_or_path="data/bert-base-uncased")
tokenize = dict(type="TokenizeQuestions", tokenizer=tokenizer, max_length=64)
pack = dict(type="PackVLInputs")

loader = dict(num_workers=4, persistent_workers=True, collate_fn=dict(type="pseudo_collate"))
train_sampler = dict(type="InfiniteSampler", shuffle=True)
test_sampler = dict(type="DefaultSampler", shuffle=False)

# CLIP's normalisation, on the scale 0-255; BERT's [PAD], [CLS] and [SEP]
data_preprocessor = dict(
    type="VisionLanguagePreprocessor",
    mean=[122.771, 116.746, 104.094],
    std=[68.501, 66.632, 70.323],
    pad_id=0,
    special_ids=[101, 102],
)
