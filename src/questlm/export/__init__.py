"""The artifact: what a trained model becomes to be kept, sent and run.

    questlm.export.pack    pack(model, folder)            the only part that knows the training layers
    questlm.export.load    load_artifact(folder)          checks everything, then reads
    questlm.export.dense   to_hugging_face(artifact, ..)  dequantised weights for other programs
    questlm.export.format  what config.json and model.safetensors may hold

Import from these modules: a packed model must run without the training code, so nothing is imported here.
"""
