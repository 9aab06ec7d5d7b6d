"""The packed format: what it contains, and how it is written and read. Imports neither training nor inference code.

questlm.artifact.format    the contents of config.json and model.safetensors
questlm.artifact.read      load_artifact(folder) checks everything, then reads
questlm.artifact.write     write_artifact(folder, ...) writes and reads back
questlm.artifact.matrices  packs and unpacks the tensors of one matrix
questlm.artifact.dense     the weights as plain float32 matrices
"""
