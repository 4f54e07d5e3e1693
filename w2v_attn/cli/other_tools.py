"""What transformers, fairseq, SpeechBrain, whisperX and others call our keys, for error messages. None is an alias."""

# What a key is here, as alternatives: the first whose key the command has is shown. One that begins with a space names
# no key; it is shown where the others do not fit. -> Names that other tools have for it.
_NAMES: dict[tuple[str, ...], str] = {
    # Fine-tuning
    ("training.max_steps (optimizer steps; the log says how many an epoch has)",): """
        epochs epoch num_epochs num_train_epochs number_of_epochs n_epochs max_epoch max_epochs
        steps num_steps total_steps train_steps num_iterations max_update max_updates""",
    ("optimizer.lr (its peak)",): "learning_rate lr max_lr peak_lr base_lr lr_adam",
    ("optimizer.lr (one rate; optimizer.factors gives other rates by name)",): "lr_wav2vec encoder_lr head_lr",
    (
        "training.batch_seconds (seconds of audio in a batch, not recordings)",
        "batch",
        " batches are formed automatically, and results do not depend on them",
    ): """
        batch_size bs per_device_train_batch_size train_batch_size max_tokens max_sentences
        per_device_eval_batch_size eval_batch_size test_batch_size""",
    ("training.gradient_accumulation_steps (forward passes per step)",): """
        gradient_accumulation grad_accum accumulate_grad_batches update_freq acc_batches grad_accumulation_factor""",
    ("optimizer.schedule.warmup (a share of all steps, such as 0.1)",): """
        warmup warmup_steps warmup_ratio warmup_updates num_warmup_steps n_warmup_steps""",
    ("training.eval_steps (steps between validations)",): """
        validate_interval validate_interval_updates eval_strategy evaluation_strategy eval_every""",
    ("training.eval_steps (each validation saves a checkpoint)",): """
        save_steps save_interval save_interval_updates save_strategy logging_steps log_interval""",
    ("training.early_stopping_patience (validations)",): "early_stopping patience",
    ("optimizer.max_grad_norm",): "clip_norm grad_clip gradient_clip_val clip",
    ("optimizer.weight_decay",): "wd",
    ("optimizer=tri_stage or linear (AdamW; optimizer.schedule has the shape)",): """
        optim optimizer_name lr_scheduler lr_scheduler_type scheduler""",
    ("optimizer.betas=[0.9,0.98]",): "adam_betas adam_beta1 adam_beta2",
    ("optimizer.eps",): "adam_epsilon adam_eps",
    ("training.freeze=feature_encoder",): "freeze_feature_encoder freeze_feature_extractor freeze_wav2vec",
    ("training.freeze=encoder",): "freeze_base_model freeze_encoder freeze_wav2vec2",
    ("training.freeze_encoder_steps",): "freeze_finetune_updates",
    ("training.lora.rank",): "r lora_r lora_rank use_lora lora peft",
    ("training.lora.alpha",): "lora_alpha",
    ("training.lora.dropout",): "lora_dropout",
    ("training.lora.targets",): "target_modules lora_target_modules",
    ("regularization.mask_time_prob",): "mask_prob mask_time spec_augment apply_spec_augment",
    ("regularization.mask_feature_prob",): "mask_channel_prob",
    ("regularization.layerdrop",): "layer_drop encoder_layerdrop",
    ("augmentation.speed=[0.9,1.0,1.1]",): "speed_perturb speeds",
    ("seed",): "random_seed manual_seed",
    (" a run is resumed by the same command; another configuration needs another output",): """
        resume resume_from_checkpoint restore_file overwrite overwrite_output_dir""",
    (" finetune trains, validates and tests; evaluate tests alone",): "do_train do_eval do_predict",
    (" the output is a folder for transformers: upload it with its own tools",): "push_to_hub hub_model_id",
    (" tensorboard --logdir OUTPUT shows the log",): "wandb report_to",
    # Data
    ("audio", "data.train (and data.valid, data.test)"): """
        input inputs input_dir in_dir in_folder i file files wav wavs wav_dir audio_dir audio_path audio_file path
        manifest manifest_path scp wav_scp csv list filelist dataset dataset_name data_dir data_folder audio""",
    ("data.train",): "train train_file train_manifest train_csv train_data train_dir train_split train_subset",
    ("data.valid",): "valid dev eval_file validation_file valid_csv valid_data valid_subset dev_file",
    ("data.test",): "test test_file test_csv test_data test_split",
    ("data.max_duration", "max_duration"): """
        max_duration_in_seconds max_sample_size max_length_seconds avoid_if_longer_than""",
    (" audio is resampled to the checkpoint's rate",): "sampling_rate sample_rate samplerate sr fs",
    # Models and where they run
    ("model.checkpoint (a hub id, a folder or a file; or model=NAME_OR_PATH)", "checkpoint"): """
        model_name_or_path model_name model_path model_id checkpoint_path pretrained_model_name_or_path pretrained
        checkpoint ckpt source hub w2v_path w2v2_hub wav2vec2_hub model.path model.name model.id model.file""",
    ("model.revision",): "model_revision",
    ("model.language (the adapters of MMS)",): "lang language target_lang src_lang",
    (
        "training.precision=float16 or bfloat16",
        "dtype=float16 or bfloat16 (output_dtype: what is stored)",
        "output_dtype=float16 or bfloat16",
    ): "fp16 bf16 half precision mixed_precision amp compute_type torch_dtype memory_efficient_fp16",
    ("device=cuda",): "gpu gpus cuda use_gpu device_index",
    (
        "training.workers (processes that read audio)",
        "workers (processes with one encoder each; audio is read in parallel anyway)",
        " audio is read in parallel anyway",
    ): "num_workers preprocessing_num_workers dataloader_num_workers n_jobs njobs num_proc threads",
    ("attention=sdpa, tiled or triton",): "attn_implementation attention_implementation attn",
    # Features and texts
    ("output",): "output_dir out_dir output_folder out_folder outdir out o dest save_dir save_folder",
    ("formats=[srt]", "layout", "format"): "format output_format",
    ("layers=[layer_06] or layers=all",): """
        layer hidden_layer output_layer layer_index all_layers output_hidden_states feature_layer""",
    ("pooling=mean",): "pool average mean_pooling",
    ("long_form=chunked with long_form.seconds and long_form.overlap",): """
        chunk_length chunk_length_s chunk_size stride_length_s segment_length""",
    ("decoder.lm (with decoder=beam_search)",): "lm lm_path lm_model kenlm kenlm_model_path language_model",
    ("decoder.beam_size (with decoder=beam_search)",): "beam beam_size beam_width num_beams beamsize",
}
OTHER_TOOLS = {name: answers for answers, names in _NAMES.items() for name in names.split()}

# Values that other tools have for keys of the same name.
_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
OTHER_CHOICES = {
    "device=gpu": "device=cuda",
    **{
        f"{key}={theirs}": f"{key}={ours}"
        for key in ("dtype", "output_dtype", "training.precision")
        for theirs, ours in _DTYPES.items()
    },
    "dtype=double": "dtype=float64",
    "dtype=fp64": "dtype=float64",
    "attention=eager": "attention=tiled",
    "attention=flash": "attention=auto",
    "attention=flash_attention_2": "attention=auto",
    "decoder=beam": "decoder=beam_search",
    "decoder=ctc": "decoder=greedy",
    "task=asr": "task=ctc",
    "optimizer=adam": "optimizer=tri_stage",
    "optimizer=adamw": "optimizer=tri_stage",
}
