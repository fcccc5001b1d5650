"""External validation: a run of cohort A on the labelled slides of cohort B."""
