"""Studies beside the survey: experiments with models' heads that have questions of their own."""
