"""What is done with models that have been trained. Each function takes the folder of a run.

    questlm.trained.evaluate   evaluate(run): loss, perplexity and bits per byte
    questlm.trained.tasks      evaluate_tasks(run, tasks, folder): accuracy in multiple-choice and last-word tasks
    questlm.trained.pack       pack(run, folder): an artifact
    questlm.trained.fit_bytes  fit_to_budget(run, file, budget): a smaller artifact, rounded anew
    questlm.trained.contest    score(model, budget): bits per byte as a contest counts them
    questlm.trained.diagnose   diagnose(run, folder): pictures of how it is quantised, and the numbers behind them

Import from these modules: each needs other libraries.
"""
