# PyramidDrop, which needs no training: it is applied to the dense checkpoint.
# python tools/calibrate.py configs/meter/quickstart_pyramid-drop.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_pyramid-drop/calibrated.pth
# python tools/test.py configs/meter/quickstart_pyramid-drop.py work_dirs/quickstart_pyramid-drop/calibrated.pth
_base_ = "quickstart_random.py"

model = dict(policy=dict(_delete_=True, type="PyramidDrop"))
