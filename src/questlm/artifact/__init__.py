"""The packed format: what it contains, and how it is written and read. Imports neither training nor inference code.

questlm.artifact.format    the contents of config.json and model.safetensors
questlm.artifact.read      load_artifact(path) checks everything, then reads
questlm.artifact.write     write_artifact(path, ...) and write_artifact_file(path, ...) write and read back
questlm.artifact.budget    a limit on the bytes
questlm.artifact.matrices  packs and unpacks the tensors of one matrix
questlm.artifact.dense     the weights as plain float32 matrices

questlm.artifact.single_file  the layout of a single file
questlm.artifact.coding       a matrix of codes as one section of it
questlm.artifact.rans         the entropy coder of a section
"""
