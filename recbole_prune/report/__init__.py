"""Text about runs: tables, costs, the plan of a dry run. Nothing is trained, and nothing prints."""
