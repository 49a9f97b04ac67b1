# FastV, which needs no training: it is applied to the dense checkpoint.
# python tools/calibrate.py configs/meter/quickstart_fastv.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_fastv/calibrated.pth
# python tools/test.py configs/meter/quickstart_fastv.py work_dirs/quickstart_fastv/calibrated.pth
_base_ = "quickstart_random.py"

# the first of four layers: the second is half of the way
model = dict(policy=dict(_delete_=True, type="FastV", layers=dict(image=[0])))
