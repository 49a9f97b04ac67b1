default_scope = "smarttrim_mm"

default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="SafeCheckpointHook", by_epoch=False, interval=500, max_keep_ckpts=2),
    state=dict(type="SafeStateHook"),
    vocabulary=dict(type="CheckVocabularyHook"),
    gates=dict(type="GateCollapseHook"),
    finite=dict(type="FiniteLossHook"),
)

log_processor = dict(type="TrimLogProcessor", by_epoch=False, window_size=10)
log_level = "INFO"
visualizer = dict(type="TrimVisualizer", vis_backends=[dict(type="LocalVisBackend")])

# dist_cfg is for GPUs; processes on a CPU talk over Gloo
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)

randomness = dict(seed=0)

load_from = None
resume = False
