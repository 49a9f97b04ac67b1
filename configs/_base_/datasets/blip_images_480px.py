# As blip_images.py, at the 480 px that BLIP answers questions at. RandAugment's shift is then of 6 pixels, in LAVIS of 5.
_base_ = "blip_images.py"

image_size = 480
crop = {**_base_.crop, "scale": image_size}
resize = {**_base_.resize, "scale": (image_size, image_size)}
