"""List of tasks: a new task is a file and a line here. Light to import: the command line reads it."""

# Name in settings and model folders -> module:class.
TASKS = {
    "subtyping": "longvit.tasks.subtyping:Subtyping",
    "survival": "longvit.tasks.survival:Survival",
    "regression": "longvit.tasks.regression:Regression",
    "ordinal": "longvit.tasks.ordinal:Ordinal",
    "multilabel": "longvit.tasks.multilabel:Multilabel",
}
