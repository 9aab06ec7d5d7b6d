"""Models in the packed format and in other people's formats.

    questlm.export.pack          pack(model, folder): a trained model as an artifact
    questlm.export.formats       the formats of other programs, by name (`questlm.trained.export` measures and writes)
    questlm.export.hugging_face  to_hugging_face(artifact, folder): a plain Llama for transformers
    questlm.export.compressed_tensors, questlm.export.gguf  weights of few bits for other engines

Import from these modules: `pack` needs the training layers, and nothing else here does.
"""
