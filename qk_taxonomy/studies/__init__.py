"""Studies: experiments beside the survey, each a package of its own."""
