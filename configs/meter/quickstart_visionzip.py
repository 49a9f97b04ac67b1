# VisionZip, which needs no training: it is applied to the dense checkpoint.
# python tools/calibrate.py configs/meter/quickstart_visionzip.py work_dirs/quickstart_dense/iter_1700.pth --speedup 1.2 \
#     --out work_dirs/quickstart_visionzip/calibrated.pth
# python tools/test.py configs/meter/quickstart_visionzip.py work_dirs/quickstart_visionzip/calibrated.pth
_base_ = "quickstart_random.py"

# The image encoder runs whole but for its last MLP, so that 1.27x is the most that can be reached in so small a model
# (python tools/cost.py configs/meter/quickstart_visionzip.py); policy.layers={'image': [1]} merges two layers sooner.
model = dict(policy=dict(_delete_=True, type="VisionZip"))
