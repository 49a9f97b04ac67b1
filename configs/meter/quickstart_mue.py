# Nothing is trained: the dense checkpoint is calibrated, which finds the similarity, and tested.
# python tools/calibrate.py configs/meter/quickstart_mue.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_mue/calibrated.pth
# python tools/test.py configs/meter/quickstart_mue.py work_dirs/quickstart_mue/calibrated.pth
_base_ = "quickstart_random.py"

# The image may exit before layers 1 to 3 of its encoder; the fusion stage has one layer, which always runs.
model = dict(policy=dict(_delete_=True, type="MuE", streams=["image"]))
