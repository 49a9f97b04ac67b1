# TRIPS: fine-tuned with patches chosen by the question, which runs first. Calibrate the dense checkpoint first, to find the
# keep ratio:
# python tools/calibrate.py configs/meter/quickstart_trips.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_trips/start.pth
# python tools/train.py configs/meter/quickstart_trips.py --cfg-options load_from=work_dirs/quickstart_trips/start.pth
_base_ = "quickstart_random.py"

model = dict(backbone=dict(text_first=True), policy=dict(_delete_=True, type="TRIPS", layers=dict(image=[0, 2])))
