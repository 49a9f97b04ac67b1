# How METER (arXiv 2111.02387 and its public code) prepares images and texts. The data sets beside this file start from it.
# RandAugment: 2 of these 14 steps, each at strength 9 of 30, on the whole image. As in the public code, but for two: its
# SolarizeAdd also brightens what is bright already, and it shifts by 30 pixels, which are 0.048 of an image of 640.
darker_or_duller = dict(magnitude_range=(-0.9, 0.9), random_negative_prob=0.0, prob=1.0)
augment = dict(
    type="mmpretrain.RandAugment",
    num_policies=2,
    magnitude_level=9,
    total_level=30,
    hparams=dict(pad_val=0),
    policies=[
        dict(type="mmpretrain.AutoContrast", prob=1.0),
        dict(type="mmpretrain.Equalize", prob=1.0),
        dict(type="mmpretrain.Rotate", magnitude_range=(0, 30), prob=1.0),
        dict(type="mmpretrain.Posterize", bits=1, prob=1.0),
        dict(type="mmpretrain.Solarize", magnitude_range=(0, 256), prob=1.0),
        dict(type="mmpretrain.SolarizeAdd", magnitude_range=(0, 110), prob=1.0),
        dict(type="mmpretrain.ColorTransform", **darker_or_duller),
        dict(type="mmpretrain.Contrast", **darker_or_duller),
        dict(type="mmpretrain.Brightness", **darker_or_duller),
        dict(type="mmpretrain.Sharpness", **darker_or_duller),
        dict(type="mmpretrain.Shear", magnitude_range=(0, 0.3), direction="horizontal", interpolation="nearest", prob=1.0),
        dict(type="mmpretrain.Shear", magnitude_range=(0, 0.3), direction="vertical", interpolation="nearest", prob=1.0),
        dict(type="mmpretrain.Translate", magnitude_range=(0, 0.16), direction="horizontal", prob=1.0),
        dict(type="mmpretrain.Translate", magnitude_range=(0, 0.16), direction="vertical", prob=1.0),
    ],
)
resize = dict(type="ResizeAndCrop")  # to the data set's image_size
tokenizer = dict(type="PretrainedTokenizer", name_or_path="data/roberta-base")
tokenize = dict(type="TokenizeQuestions", tokenizer=tokenizer, max_length=50)
load = dict(type="LoadImage", imdecode_backend="pillow")
pack = dict(type="PackVLInputs")

train_pipeline = [load, augment, resize, tokenize, pack]
test_pipeline = [load, resize, tokenize, pack]
loader = dict(num_workers=8, persistent_workers=True, collate_fn=dict(type="pseudo_collate"))
train_sampler = dict(type="InfiniteSampler", shuffle=True)
test_sampler = dict(type="DefaultSampler", shuffle=False)

# CLIP's normalisation, on the scale 0-255
data_preprocessor = dict(type="VisionLanguagePreprocessor", mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323])
