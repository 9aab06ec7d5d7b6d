"""The packed format: what it holds, and how it is written and read. It knows neither training nor inference.

questlm.artifact.format    what config.json and model.safetensors may hold
questlm.artifact.read      load_artifact(folder) checks everything, then reads
questlm.artifact.write     write_artifact(folder, ...) writes and reads back
questlm.artifact.matrices  between the stored tensors of one matrix and the factor of a product
questlm.artifact.dense     the weights as plain matrices
"""
