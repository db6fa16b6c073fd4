"""Everything between a decoded request and its answer: admission, scheduler, lanes, repository, lifecycle."""
